"""What the user's side and the node's side of the library share: one server, one token, blobs."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from kolejka.client import transfers
from kolejka.client.credentials import find_token
from kolejka.client.transfers import Moved
from kolejka.client.transport import Transport, server_url
from kolejka.common.settings import ClientSettings


class ServerClient:
    """A caller of one server. ``settings`` default to files and environment; ``server`` and ``token`` override them.

    InputError when the address is none or a token's file cannot be used. Nothing is sent before the first call.
    """

    def __init__(
        self, settings: ClientSettings | None = None, *, server: str | None = None, token: str | None = None
    ) -> None:
        settings = ClientSettings.load() if settings is None else settings
        self.settings = settings
        self.server = server_url(server or settings.server)
        found = find_token(settings, explicit=token, server=self.server)
        self.transport = Transport(
            self.server, found.value, token_source=found.source if not token else "",
            look_again=lambda: find_token(settings, explicit=token, server=self.server).value,
            ca=os.path.expanduser(settings.ca), timeout_s=settings.timeout, patience_s=settings.patience,
            direct=settings.direct,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.server!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Twice is fine."""
        self.transport.close()

    def version(self) -> str:
        """The server's version."""
        return str(self.transport.request("GET", "").object().get("version", "unknown"))

    def whoami(self) -> dict[str, Any]:
        """Who this token speaks for: ``user``, ``role``, ``token``."""
        return self.transport.request("GET", "/whoami").object()

    def has_blob(self, reference: str) -> bool:
        """Whether the server has the blob of this SHA-256, for this caller."""
        return transfers.has_blob(self.transport, reference)

    def put_blob(
        self, source: str | os.PathLike[str] | bytes | BinaryIO, *, reference: str | None = None,
        moved: Moved | None = None,
    ) -> str:  # fmt: skip
        """Store a file (by its path), bytes, or all that an open stream holds; the SHA-256 that names the blob.

        Files travel in constant memory, and not at all when the server has them. ``reference`` is the hash a file is
        expected to have. InputError when the file cannot be read or changes meanwhile.
        """
        if isinstance(source, bytes):
            return transfers.upload_bytes(self.transport, source, moved)
        if isinstance(source, str | os.PathLike):
            return transfers.upload_file(self.transport, source, reference=reference, moved=moved)
        return transfers.upload_stream(self.transport, source, moved)

    def get_blob(
        self, reference: str, path: str | os.PathLike[str], *, size: int | None = None, mode: int = 0o644,
        moved: Moved | None = None,
    ) -> int:  # fmt: skip
        """Write a blob to ``path``, whole or not at all, its hash verified; its size in bytes.

        NotFound when the server has no such blob for this caller; Unavailable when it sends other bytes; NodeError
        when they cannot be written here.
        """
        return transfers.download_file(self.transport, reference, Path(path), size=size, mode=mode, moved=moved)
