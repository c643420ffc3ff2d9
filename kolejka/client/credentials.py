"""Where the token comes from.

The first of these that has one: the caller; the settings (``KOLEJKA_CLIENT_TOKEN``, ``token`` in a file); the file that
``token_file`` names; the user's ``credentials.json`` (mode 0600, written by ``kolejka login``), which holds one token
per server; and, for a server on this machine, the admin's token that it wrote into its data folder, where the caller
may read that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kolejka.client.transport import is_loopback, server_url
from kolejka.common.errors import InputError, NodeError
from kolejka.common.files import read_json, write_json
from kolejka.common.settings import ClientSettings, ServerSettings, user_config

ADMIN_TOKEN: Final = "admin.token"
USUAL_SERVER: Final = server_url(ClientSettings().server)
"""where a client looks that was told of no server"""


@dataclass(frozen=True)
class Token:
    """A token and where it came from. The value does not print."""

    value: str | None = field(repr=False)
    source: str


def credentials_file(environment: Mapping[str, str] | None = None) -> Path:
    """The file in which ``login`` keeps tokens, whether it exists or not."""
    return user_config(environment).parent / "credentials.json"


def find_token(settings: ClientSettings, *, explicit: str | None = None, server: str | None = None) -> Token:
    """The token to show to ``server`` (by default the settings' server); its value is ``None`` when there is none.

    InputError when a file that should hold one is missing, unreadable or open to others.
    """
    server = server_url(server or settings.server)
    if explicit:
        return Token(explicit, "the caller")
    if settings.token:
        return Token(settings.token, "the settings (KOLEJKA_CLIENT_TOKEN)")
    if settings.token_file:
        return Token(_read_token(Path(settings.token_file).expanduser()), settings.token_file)
    stored = load_credentials().get(server)
    if stored:
        return Token(stored, str(credentials_file()))
    if is_loopback(server):
        path = ServerSettings.load().data / ADMIN_TOKEN
        if os.access(path, os.R_OK):
            return Token(_read_token(path), str(path))
    return Token(None, "nowhere")


def is_set_up(settings: ClientSettings) -> bool:
    """Whether somebody told this client of a server: named one, has a token for it, or set one up on this machine."""
    return server_url(settings.server) != USUAL_SERVER or find_token(settings).value is not None


def _read_token(path: Path) -> str:
    try:
        with open(path, encoding="ascii") as source:
            text = source.read(4096).strip()
    except FileNotFoundError:
        raise InputError("there is no such file; it should hold a token", field=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", field=str(path)) from None
    except ValueError:
        raise InputError("this file holds no token", field=str(path)) from None
    if not text:
        raise InputError("this file is empty; it should hold a token", field=str(path))
    return text


def load_credentials(path: Path | None = None) -> dict[str, str]:
    """Server → token, as ``login`` stored them; empty when it never did.

    InputError when others can read the file or it is broken.
    """
    path = credentials_file() if path is None else path
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return {}
    if mode & 0o077:
        raise InputError(f"others can read your tokens; run `chmod 600 {path}`", field=str(path))
    data = read_json(path)
    if not isinstance(data, dict) or not all(isinstance(v, str) for v in data.values()):
        raise InputError("this file should hold server → token; remove it and run `kolejka login`", field=str(path))
    return data


def store_credential(server: str, token: str | None, path: Path | None = None) -> Path:
    """Keep ``token`` for ``server`` (``None`` forgets it); the file it stands in. NodeError when it cannot be kept."""
    path = credentials_file() if path is None else path
    stored = load_credentials(path)
    if token is None:
        stored.pop(server_url(server), None)
    else:
        stored[server_url(server)] = token
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(path, stored, mode=0o600)
    except OSError as error:
        raise NodeError(f"the token cannot be kept: {error.strerror}", field=str(path)) from None
    return path
