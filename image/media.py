"""What machines boot from, made of a built image: UEFI disk, ISO, iPXE script. No loop device, no mount.

Disk and ISO carry one file system labelled ``KOLEJKA`` with ``kolejka/node.squashfs``, where the boot script finds
it. On the disk it is also the EFI partition, in FAT, so that any machine can write ``kolejka/config/`` on a stick:
``kolejka.toml``, ``token``, ``ca.pem``, ``authorized_keys``. systemd-boot starts the kernel in both.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from image.build import Image, run, whole_initrd

WORDS: Final = (
    "boot=kolejka psi=1 systemd.swap=0 systemd.gpt_auto=0 panic=10 quiet loglevel=4 console=tty0 console=ttyS0,115200"
)
"""The kernel words of every medium; iPXE and boot loaders add the deployer's."""
TOOLS: Final = {"sfdisk": "fdisk", "mformat": "mtools", "mcopy": "mtools", "xorriso": "xorriso"}
LABEL: Final = "KOLEJKA"
_MIB: Final = 1 << 20
_DISK: Final = "6b6f6c65-6a6b-4a01-8000-6b6f6c656a6b"
_PARTITION: Final = "6b6f6c65-6a6b-4a02-8000-6b6f6c656a6b"
_SERIAL: Final = "6b6f6c65"
_LOADER: Final = "default kolejka.conf\ntimeout 3\neditor no\n"
_ENTRY: Final = "title Kolejka node {version}\nlinux /kolejka/vmlinuz\ninitrd /kolejka/initrd\noptions {words}\n"
_IPXE: Final = """\
#!ipxe
# A diskless node. Serve this folder by HTTP, and chain here from a script of yours, which says where that is in `base`
# (it ends with a slash; newer iPXE knows by itself), words of your own in `kolejka`, such as kolejka.server=https://...,
# and in `files` the address of a cpio archive with a folder `kolejka`: kolejka.toml, token, ca.pem, authorized_keys.
isset ${{kolejka}} || set kolejka
isset ${{base}} || set base ${{cwuri}}
isset ${{files}} && set more initrd=files || set more
set root kolejka.from=${{base}} kolejka.image=node.squashfs kolejka.sha256={digest}
kernel vmlinuz initrd=initrd ${{more}} {words} BOOTIF=01-${{netX/mac:hexhyp}} ${{root}} ${{kolejka}}
initrd initrd
isset ${{files}} || goto whole
initrd --name files ${{files}}
:whole
boot
"""


def write_media(image: Image, target: Path, *, version: str, epoch: int) -> None:
    """Fill the folder ``target`` with all that is published: the plain files, the media, their hashes."""
    target.mkdir(parents=True, exist_ok=True)
    for path in (image.kernel, image.initrd, image.squashfs, image.manifest):
        shutil.copyfile(path, target / path.name)
    whole_initrd(image, target / "initrd-full", epoch=epoch)
    write_disk(image, target / "node.img", version=version, epoch=epoch)
    write_iso(image, target / "node.iso", version=version, epoch=epoch)
    (target / "boot.ipxe").write_text(ipxe_script(image), encoding="ascii")
    (target / "kernel-words").write_text(WORDS + "\n", encoding="ascii")
    names = sorted(path.name for path in target.iterdir() if path.name != "SHA256SUMS")
    sums = "".join(f"{digest_of(target / name)}  {name}\n" for name in names)
    (target / "SHA256SUMS").write_text(sums, encoding="ascii")


def digest_of(path: Path) -> str:
    """A file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ipxe_script(image: Image) -> str:
    """The script that boots the image by HTTP from the folder where it lies itself."""
    return _IPXE.format(words=WORDS, digest=digest_of(image.squashfs))


def write_disk(image: Image, disk: Path, *, version: str, epoch: int) -> None:
    """A disk image for sticks, disks and clouds: GPT with one EFI partition."""
    size = _fat_size(image.kernel, image.initrd, image.squashfs)
    with disk.open("wb") as file:
        file.truncate(size + 2 * _MIB)
    script = (
        f"label: gpt\nlabel-id: {_DISK}\nfirst-lba: 2048\n"
        f"start=1MiB, size={size // _MIB}MiB, type=U, uuid={_PARTITION}, name={LABEL}\n"
    )
    with tempfile.TemporaryDirectory(prefix="kolejka-disk-") as scratch:
        plan = Path(scratch) / "plan"
        plan.write_text(script, encoding="ascii")
        run("sh", "-c", 'exec sfdisk --quiet --no-reread --no-tell-kernel "$1" < "$2"', "sh", disk, plan)
        _fill_fat(image, f"{disk}@@1M", size, LABEL, version=version, epoch=epoch, with_root=True)


def write_iso(image: Image, iso: Path, *, version: str, epoch: int) -> None:
    """A CD image for UEFI."""
    with tempfile.TemporaryDirectory(prefix="kolejka-iso-") as scratch:
        tree = Path(scratch) / "tree"
        (tree / "kolejka").mkdir(parents=True)
        # Inside the file system: what is appended behind it and larger than 32 MiB has no size that firmware believes.
        fat = tree / "kolejka/efi.img"
        shutil.copyfile(image.squashfs, tree / "kolejka/node.squashfs")
        size = _fat_size(image.kernel, image.initrd)
        with fat.open("wb") as file:
            file.truncate(size)
        _fill_fat(image, os.fspath(fat), size, "KOLEJKA-EFI", version=version, epoch=epoch, with_root=False)
        run(
            "xorriso", "-as", "mkisofs", "-quiet", "-r", "-V", LABEL, "-o", iso,
            "--set_all_file_dates", f"={epoch}", "-e", "kolejka/efi.img", "-no-emul-boot", tree,
            environment={"SOURCE_DATE_EPOCH": str(epoch)},
        )  # fmt: skip


def _fat_size(*files: Path) -> int:
    """Room for these files and as much again as a configuration may take, in whole MiB."""
    need = sum(path.stat().st_size for path in files)
    return max(48 * _MIB, -(-(need + need // 50 + 16 * _MIB) // _MIB) * _MIB)


def cluster_size(sectors: int) -> int:
    """Sectors in a cluster, so that there are enough clusters: firmware takes one with fewer than 65525 for FAT16."""
    size = 8
    while size > 1 and sectors // size < 70_000:
        size //= 2
    return size


def _fill_fat(image: Image, place: str, size: int, label: str, *, version: str, epoch: int, with_root: bool) -> None:
    """Make a FAT32 file system at ``place`` (mtools' words) and lay the boot files into it."""
    environment = {"SOURCE_DATE_EPOCH": str(epoch), "MTOOLS_SKIP_CHECK": "1"}
    sectors = size // 512
    words = ["-F", "-v", label, "-N", _SERIAL, "-T", str(sectors), "-c", str(cluster_size(sectors))]
    run("mformat", "-i", place, *words, "::", environment=environment)
    with tempfile.TemporaryDirectory(prefix="kolejka-fat-") as scratch:
        tree = Path(scratch)
        for folder in ("EFI/BOOT", "loader/entries", "kolejka"):
            (tree / folder).mkdir(parents=True)
        shutil.copyfile(image.boot_loader, tree / "EFI/BOOT/BOOTX64.EFI")
        (tree / "loader/loader.conf").write_text(_LOADER, encoding="ascii")
        (tree / "loader/entries/kolejka.conf").write_text(_ENTRY.format(version=version, words=WORDS), encoding="ascii")
        shutil.copyfile(image.kernel, tree / "kolejka/vmlinuz")
        shutil.copyfile(image.initrd, tree / "kolejka/initrd")
        if with_root:
            shutil.copyfile(image.squashfs, tree / "kolejka/node.squashfs")
        for path in sorted(tree.rglob("*")):
            name = f"::{path.relative_to(tree)}"
            os.utime(path, (epoch, epoch))
            if path.is_dir():
                run("mmd", "-i", place, name, environment=environment)
            else:
                run("mcopy", "-m", "-i", place, path, name, environment=environment)
