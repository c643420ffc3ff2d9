"""A machine's way to a token of its own: ask to be let in, then show the secret until an admin has approved."""

from __future__ import annotations

import os

from kolejka.client.transport import Transport
from kolejka.common.enrolment import digest
from kolejka.common.settings import ClientSettings

TIMEOUT_S = 10.0
"""how long one question may stay without an answer: its caller asks again anyway, and may have to end meanwhile"""


class Door:
    """The door of one server, for who has no token. ``close`` it in the end."""

    def __init__(self, settings: ClientSettings) -> None:
        self.transport = Transport(
            settings.server, ca=os.path.expanduser(settings.ca), timeout_s=min(settings.timeout, TIMEOUT_S),
            patience_s=0.0,
        )  # fmt: skip

    def close(self) -> None:
        """Close the connections."""
        self.transport.close()

    def ask(self, name: str, secret: str) -> None:
        """Ask to be let in under a name. Again is fine.

        InputError when the server takes no such name, NotAllowed when nobody may ask, Unavailable when it does not
        answer or has no room.
        """
        self.transport.request("POST", "/enrolments", json={"name": name, "hash": digest(secret)})

    def token(self, secret: str) -> str | None:
        """The token, ``None`` while nobody has approved.

        NotFound when the server knows nothing of this machine: ask again. NotAllowed when an admin refused it.
        """
        answer = self.transport.request("POST", "/enrolments/token", json={"secret": secret})
        if answer.status != 200:
            return None
        with self.transport.understanding():
            return str(answer.object()["token"])
