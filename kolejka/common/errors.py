"""The errors every part of Kolejka speaks.

The tree answers one question, *whose fault is it*, because that decides who is told and what happens next:

``KolejkaError``
    ``InputError``      the caller's words are wrong: one line says what, where and how to mend it; nothing was changed
        ``NotAllowed``  the words are fine, this caller may not say them
        ``NotFound``    what they name does not exist, or not for this caller
        ``Conflict``    true once, overtaken now (a lost lease, a task already done)
    ``NodeError``       this machine lacks or broke something; an administrator mends it
    ``Unavailable``     a neighbour does not answer; trying again later may help

Every error has a ``code``, a stable word for programs. The HTTP status of a code is decided in one place, the server's
``api/errors.py``; the exit status of a class in ``kolejka/cli/errors.py``.
"""

from __future__ import annotations


class KolejkaError(Exception):
    """Something went wrong that has a name.

    ``message`` says what happened and how to mend it, in one line. ``field`` is the place in the caller's words
    (``limits.memory``), or ``None``. ``code`` is a stable word for programs.
    """

    code = "error"

    def __init__(self, message: str, *, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message

    def within(self, place: str, joint: str = ": ") -> KolejkaError:
        """The same error, seen from outside: ``field`` is put below ``place`` (a file; a field, with joint ``.``)."""
        copy = type(self)(self.message, field=f"{place}{joint}{self.field}" if self.field else place, code=self.code)
        copy.__cause__ = self.__cause__
        return copy


class InputError(KolejkaError):
    """What the caller said is wrong, and nothing was changed."""

    code = "invalid"


class NotAllowed(InputError):
    """This caller may not do that."""

    code = "forbidden"


class NotFound(InputError):
    """There is no such thing, or not for this caller."""

    code = "not_found"


class Conflict(InputError):
    """The state of the thing has moved on."""

    code = "conflict"


class NodeError(KolejkaError):
    """This machine lacks something or broke; the message names it and the cure."""

    code = "node"


class Unavailable(KolejkaError):
    """A neighbour (server, observer, container engine) does not answer."""

    code = "unavailable"
