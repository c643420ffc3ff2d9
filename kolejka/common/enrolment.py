"""How a machine without a token and a server speak of it: a secret, its hash, and a fingerprint that people compare.

The machine makes the secret once and keeps it. The server learns its SHA-256 first, which opens nothing; an admin
compares the fingerprint on the machine's screen with the one that the server shows; whoever then shows the secret gets
the token. A fingerprint is 80 bits of the hash: nobody finds another secret with the same one.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from typing import Final

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$"
"""what a node that enrols may be called: its user has the same name"""
HASH_PATTERN: Final = "^[0-9a-f]{64}$"
SECRET_PATTERN: Final = "^kle_[A-Za-z0-9_-]{43}$"
_BYTES: Final = 10
_GROUP: Final = 4


def new_secret() -> str:
    """A fresh secret: 256 random bits."""
    return "kle_" + secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """What the server is told of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def fingerprint(hashed: str) -> str:
    """The short form of a secret's hash: ``ABCD-EFGH-IJKL-MNOP``."""
    text = base64.b32encode(bytes.fromhex(hashed)[:_BYTES]).decode()
    return "-".join(text[start : start + _GROUP] for start in range(0, len(text), _GROUP))


def same_fingerprint(one: str, other: str) -> bool:
    """Whether two fingerprints are the same, however they were typed."""
    return _bare(one) == _bare(other)


def _bare(text: str) -> str:
    return "".join(character for character in text.upper() if character.isalnum())


def approval(name: str, shown: str = "") -> str:
    """The command with which an admin lets a node in."""
    return f"kolejka node approve {name}" + (f" --fingerprint {shown}" if shown else "")
