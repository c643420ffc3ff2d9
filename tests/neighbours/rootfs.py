"""A whole root file system from one static program: what the tests use as a container image."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

from tests.neighbours.needs import find

_FOLDERS = ("bin", "dev", "etc", "proc", "root", "sys", "tmp", "usr", "usr/bin", "var")
_TEXTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/os-release": 'ID=kolejka-busybox\nPRETTY_NAME="busybox for the tests of Kolejka"\n',
}


def write_busybox_tar(target: Path) -> Path:
    """Write the root file system as a tar file: busybox with all its names in ``/bin``, and a few files of ``/etc``."""
    program = find("busybox")
    assert program is not None, "guarded by needs('busybox')"
    names = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    with tarfile.open(target, "w") as archive:
        for folder in _FOLDERS:
            entry = tarfile.TarInfo(folder)
            entry.type = tarfile.DIRTYPE
            entry.mode = 0o1777 if folder == "tmp" else 0o755
            archive.addfile(entry)
        for name, text in _TEXTS.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
        binary = archive.gettarinfo(program, "bin/busybox")
        binary.mode, binary.uid, binary.gid, binary.uname, binary.gname = 0o755, 0, 0, "root", "root"
        binary.type = tarfile.REGTYPE
        with open(program, "rb") as source:
            archive.addfile(binary, source)
        for name in names:
            if name != "busybox":
                entry = tarfile.TarInfo(f"bin/{name}")
                entry.type = tarfile.SYMTYPE
                entry.linkname = "busybox"
                archive.addfile(entry)
    return target
