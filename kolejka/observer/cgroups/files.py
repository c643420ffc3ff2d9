"""The one door to the kernel's control-group files.

Everything the observer reads from, writes to, creates or removes in a control-group file system goes through a
``Door``, so that errors are named in one place and tests can put a recorded tree behind it.

A file that is missing because the kernel is older is asked for with ``read_optional`` (its version stands where it is
declared, see ``typed.py``). Every other missing file is a ``NodeError`` with path and cure. A *group* that is missing
is ``GroupGone``: somebody removed it, or it was never made.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from typing import Final

from kolejka.common.errors import NodeError

_CURES: Final = (
    (b"memory.memsw.", "boot with swapaccount=1, or switch swap off"),
    (b"memory.swap.", "boot with swapaccount=1, or switch swap off"),
    (b"memory.", "boot with cgroup_enable=memory (the kernel's memory controller is off)"),
    (b"pids.", "use a kernel with CONFIG_CGROUP_PIDS"),
    (b"cpuset.", "use a kernel with CONFIG_CPUSETS"),
    (b"cgroup.", "use Linux 5.4 or newer"),
)
_GONE: Final = (errno.ENODEV, errno.ENOENT)
_BUSY_S: Final = 2.0
"""How long ``remove`` waits for a group that is empty but busy: the kernel lets go of dead tasks a little later."""


class KernelFileError(NodeError):
    """The kernel refused. ``errno`` says why."""

    def __init__(self, message: str, *, number: int = 0, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message, field=field, code=code)
        self.errno = number


class GroupGone(KernelFileError):
    """The control group does not exist."""


def explain(path: bytes, error: OSError, action: str) -> KernelFileError:
    """The named error for what the kernel said about ``path``."""
    folder, name = os.path.split(path)
    shown = os.fsdecode(path)
    if error.errno in _GONE:
        if not os.path.isdir(folder) or error.errno == errno.ENODEV:
            return GroupGone(f"the control group {os.fsdecode(folder)} is gone", number=error.errno or 0)
        cure = next((cure for prefix, cure in _CURES if name.startswith(prefix)), "use a newer kernel")
        return KernelFileError(f"{shown} is missing; {cure}", number=error.errno or 0)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        cure = "run as root, or in a control group that was delegated to you (systemd: Delegate=yes)"
        return KernelFileError(f"{shown}: no right to {action} it; {cure}", number=error.errno or 0)
    return KernelFileError(f"{shown}: the kernel refused to {action} it: {error.strerror}", number=error.errno or 0)


def read_whole(path: bytes) -> bytes:
    """All that a small kernel file says, by three system calls where that is enough. OSError as from ``open``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(descriptor, 65536)
        if len(text) > 2048:  # longer files may come in pieces; for the short ones a second read is waste
            while piece := os.read(descriptor, 65536):
                text += piece
    finally:
        os.close(descriptor)
    return text


class Door:
    """Reads and writes small kernel files. Paths are absolute and bytes, as ``cgroupspy`` keeps them."""

    def read(self, path: bytes) -> str:
        """The text of a file, stripped. NodeError with path and cure where it is missing."""
        try:
            return self._read(path)
        except OSError as error:
            raise explain(path, error, "read") from None

    def read_optional(self, path: bytes) -> str | None:
        """The text of a file that not every kernel has, or ``None``."""
        try:
            return self._read(path)
        except OSError as error:
            # EOPNOTSUPP: pressure figures switched off at boot (psi=0)
            if error.errno in (*_GONE, errno.EOPNOTSUPP):
                return None
            raise explain(path, error, "read") from None

    def _read(self, path: bytes) -> str:
        return read_whole(path).decode("ascii", "replace").strip()

    def write(self, path: bytes, text: str) -> None:
        """Write in one call, as the kernel wants it. KernelFileError carries the kernel's errno."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, text.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            raise explain(path, error, "write") from None

    def exists(self, path: bytes) -> bool:
        """Whether the file or group is there."""
        return os.path.exists(path)

    def make(self, path: bytes) -> bool:
        """Create one group; False when it was there. GroupGone when its parent is not."""
        try:
            os.mkdir(path, 0o755)
        except FileExistsError:
            return False
        except FileNotFoundError as error:
            raise GroupGone(
                f"the control group {os.fsdecode(os.path.dirname(path))} is gone", number=error.errno or 0
            ) from None
        except OSError as error:
            raise explain(path, error, "create") from None
        return True

    def remove(self, path: bytes) -> bool:
        """Remove a group and all groups below it, every one of which must be empty; False when there is none.

        KernelFileError (EBUSY) where processes stay in it for ``_BUSY_S`` seconds.
        """
        deadline = 0.0
        while True:
            try:
                os.rmdir(path)
                return True
            except FileNotFoundError:
                return False
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    raise explain(path, error, "remove") from None
                below = self.below(path)
                for name in below:
                    self.remove(path + b"/" + name)
                now = time.monotonic()
                deadline = deadline or now + _BUSY_S
                if not below and now > deadline:
                    raise explain(path, error, "remove") from None
                if not below:
                    time.sleep(0.001)  # no event says that the kernel has let go

    def below(self, path: bytes) -> list[bytes]:
        """Names of the groups directly below; none when the group is gone."""
        with suppress(FileNotFoundError):  # gone: nothing is below
            if os.stat(path).st_nlink == 2:  # control-group folders count their subfolders, so this saves the listing
                return []
            with os.scandir(path) as entries:
                return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        return []
