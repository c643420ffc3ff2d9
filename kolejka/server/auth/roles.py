"""Roles, and the sets of them that routes name. ``kolejka/server/app.py`` is the table role × route."""

from __future__ import annotations

import enum
from typing import Final


class Role(enum.StrEnum):
    """What a token lets its bearer do."""

    CLIENT = "client"
    """put tasks; see and cancel one's own"""
    NODE = "node"
    """claim tasks, and do a node's work on the leases held"""
    INSPECTOR = "inspector"
    """see everything, change nothing"""
    ADMIN = "admin"
    """everything"""


EVERYBODY: Final = frozenset(Role)
NODES: Final = frozenset({Role.NODE, Role.ADMIN})
OWNERS: Final = frozenset({Role.CLIENT, Role.ADMIN})
READERS: Final = frozenset({Role.CLIENT, Role.INSPECTOR, Role.ADMIN})
BLOB_WRITERS: Final = frozenset({Role.CLIENT, Role.NODE, Role.ADMIN})
WATCHERS: Final = frozenset({Role.INSPECTOR, Role.ADMIN})
ADMINS: Final = frozenset({Role.ADMIN})


def may_hold(user: Role, token: Role) -> bool:
    """Whether a user of one role may have a token of another: an admin any, everybody else their own only."""
    return user is Role.ADMIN or user is token
