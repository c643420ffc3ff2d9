"""Being let in: how a foreman without a token gets one of its own.

::

    DATA/enrolment    the secret that this machine made at its first start, mode 0600
    DATA/token        the token that the server gave for it, mode 0600

It asks under its name with the secret's hash, shows name and fingerprint wherever people look, and shows the server
the secret, ever more rarely, until an admin has approved. Whatever else happens (a server that is away, no room, a
refusal that the admin may take back) it goes on asking: nobody has to come to the machine. A token that was revoked is
no reason to ask anew: an admin wanted it so.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from kolejka.common.enrolment import NAME_PATTERN, SECRET_PATTERN, approval, digest, fingerprint, new_secret
from kolejka.common.errors import InputError, NodeError, NotAllowed, NotFound, Unavailable
from kolejka.common.files import replacing
from kolejka.common.settings import ClientSettings, ForemanSettings

logger = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 15.0
REFUSED_PAUSE_S: Final = 60.0


class Door(Protocol):
    """The server's door; the client's ``Door`` is one."""

    def ask(self, name: str, secret: str) -> None:
        """Ask to be let in."""

    def token(self, secret: str) -> str | None:
        """The token, once an admin has approved."""


def token_file(foreman: ForemanSettings) -> Path:
    """Where an enrolled machine keeps its token."""
    return foreman.data / "token"


def is_enrolled(foreman: ForemanSettings, client: ClientSettings) -> bool:
    """Whether this machine goes by a token that it got by asking, or is to ask for one."""
    return foreman.enrol and not client.token and not client.token_file


def with_token(foreman: ForemanSettings, client: ClientSettings) -> ClientSettings:
    """The way to the server with the token of an enrolled machine."""
    return dataclasses.replace(client, token_file=str(token_file(foreman)))


def secret_of(foreman: ForemanSettings) -> str:
    """The secret of this machine, made if there is none yet. NodeError when it cannot be kept."""
    path = foreman.data / "enrolment"
    known = path.read_text(encoding="ascii", errors="replace").strip() if path.exists() else ""
    if not re.fullmatch(SECRET_PATTERN, known):  # the first start, or one that a crash cut short
        known = new_secret()
        _keep(path, known)
    return known


def _keep(path: Path, text: str) -> None:
    try:
        with replacing(path, mode=0o600, durable=True) as sink:
            sink.write(text.encode() + b"\n")
    except OSError as error:
        raise NodeError(f"{path} cannot be written: {error.strerror}", field="foreman.data") from None


def check_name(name: str) -> None:
    """InputError when no node that enrols may be called so."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise InputError(
            f"a node that enrols cannot be called {name!r}; letters, digits and . _ @ - are fine", field="foreman.name"
        )


def let_in(
    foreman: ForemanSettings, door: Door, pause: Callable[[float], bool], tell: Callable[[str, str], object]
) -> bool:
    """Ask until this machine has a token, and keep it; False when ``pause`` said that the foreman is to end.

    ``pause`` waits so many seconds and says whether to go on. ``tell`` is told in words how it stands, and the
    fingerprint.
    """
    check_name(foreman.name)
    secret = secret_of(foreman)
    shown = fingerprint(digest(secret))
    words = f"waiting to be let in: compare the fingerprint {shown}, then run `{approval(foreman.name)}`"
    logger.warning("node waits to be let in", extra={"node": foreman.name, "fingerprint": shown,
                                                     "then_run": approval(foreman.name)})  # fmt: skip
    tell(words, shown)
    asked, said, pause_s = False, "", FIRST_PAUSE_S
    while True:
        longest_s, now = LONGEST_PAUSE_S, words
        try:
            if not asked:
                door.ask(foreman.name, secret)
                asked = True
            token = door.token(secret)
            if token is not None:
                _keep(token_file(foreman), token)
                logger.info("node was let in", extra={"node": foreman.name, "fingerprint": shown})
                return True
        except NotFound:  # a server that was restored from before we asked, or has forgotten us
            asked = False
        except NotAllowed as error:
            longest_s, pause_s, now = REFUSED_PAUSE_S, REFUSED_PAUSE_S, f"not let in: {error}"
        except (Unavailable, InputError) as error:
            now = f"cannot ask to be let in: {error}"
        if now not in {said, words}:
            logger.warning("node is not let in yet", extra={"reason": now})
        said = now
        tell(now, shown)
        if not pause(pause_s):
            return False
        pause_s = min(longest_s, pause_s * 2)


def revoked(foreman: ForemanSettings) -> str:
    """What to do where the server knows an enrolled machine's token no more."""
    return (
        f"an admin revoked what it got when it was let in; to ask anew, remove {token_file(foreman)} and start the "
        "foreman again"
    )
