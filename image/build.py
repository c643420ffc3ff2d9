"""Building: a base of Debian packages, the tree laid over it, kernel, initrd and squashfs out of it.

Everything that differs from one build to the next is put right at the end: times are those of the recipe's epoch, names
are sorted, what was compiled names its source by hash, what a package made up at random (keys, ids, caches, logs) is
removed. The same recipe and the same packages give the same bytes.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from image import cpio, distributions
from image.recipe import (
    BASE_EPOCH,
    ENGINE_SOCKETS,
    EXCLUDED,
    HERE,
    HOOKS,
    KEPT,
    PROJECT,
    Recipe,
    contents_of,
    tree_files,
)
from kolejka.common.node_image import IMAGE_ID

PREFIX: Final = Path("opt/kolejka")
SERVICES: Final = ("kolejka-sessions", "kolejka-observer", "kolejka-foreman")
ENABLED: Final = (
    "kolejka-screen@tty1.service",
    "kolejka-screen@ttyS0.service",
    "systemd-networkd.service",
    "systemd-resolved.service",
    "systemd-timesyncd.service",
    "ssh.service",
)
ENGINE_DATA: Final = {"docker": "var/lib/docker", "podman": "var/lib/containers"}
MASKED: Final = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "fstrim.timer", "man-db.timer", "swap.target", "getty@tty1.service", "serial-getty@ttyS0.service", "ssh.socket",
    "ctrl-alt-del.target", "systemd-firstboot.service", "systemd-update-utmp-runlevel.service",
)  # fmt: skip
FORGOTTEN: Final = (
    "etc/machine-id", "var/lib/dbus/machine-id", "etc/ssh/ssh_host_*", "etc/hostname", "etc/resolv.conf", "etc/fstab",
    "var/lib/systemd/random-seed", "var/lib/systemd/credential.secret", "var/log/*", "var/cache/*",
    "var/lib/apt/lists/*",
    "etc/apt/sources.list", "etc/apt/sources.list.d/*", "etc/apt/apt.conf.d/99mmdebstrap", "var/lib/dpkg/*-old",
    "etc/*-", "tmp/*", "var/tmp/*", "run/*", "boot/*", "root/.*", "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
)  # fmt: skip
"""What the image must not have: what identifies a machine, what packages made up, and where they were fetched from."""
TOOLS: Final = {"mmdebstrap": "mmdebstrap", "mksquashfs": "squashfs-tools", "unshare": "util-linux"}


class BuildError(Exception):
    """The image cannot be built; the message says why and what helps."""


@dataclass(frozen=True)
class Image:
    """A built image: three plain files that any boot loader can serve, and what is known about them."""

    folder: Path

    @property
    def kernel(self) -> Path:
        """The kernel."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The initrd, without the root file system."""
        return self.folder / "initrd"

    @property
    def squashfs(self) -> Path:
        """The root file system."""
        return self.folder / "node.squashfs"

    @property
    def boot_loader(self) -> Path:
        """systemd-boot's program for UEFI."""
        return self.folder / "bootx64.efi"

    @property
    def manifest(self) -> Path:
        """JSON: version, recipe, every Debian and Python package with its version."""
        return self.folder / "manifest.json"


def run(*command: str | os.PathLike[str], environment: Mapping[str, str] = {}, folder: Path | None = None) -> str:
    """Run a tool and return what it printed. BuildError with its last words when it fails."""
    done = subprocess.run(
        [os.fspath(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        errors="replace", cwd=folder, env={**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC", **environment},
    )  # fmt: skip
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise BuildError(f"{Path(command[0]).name} ended with {done.returncode}:\n{last}")
    return done.stdout


def check_tools(tools: Mapping[str, str] = TOOLS) -> None:
    """BuildError with the command that installs what is missing."""
    if os.geteuid() != 0:
        raise BuildError("building an image needs root")
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = sorted({package for tool, package in tools.items() if not shutil.which(tool, path=path)})
    if missing:
        words = " ".join(missing)
        raise BuildError(f"{', '.join(missing)} missing; run: apt-get install --no-install-recommends {words}")


def build(recipe: Recipe, store: Path, *, fresh: bool = False) -> Image:
    """The image of this recipe and this tree, from ``store`` or built now. ``fresh`` builds it in any case, base
    included.

    BuildError with a tool's last words when it cannot be.
    """
    check_tools()
    packages = distributions.closure(distributions.NODE)
    hook = _hook(recipe)
    contents = contents_of(tree_files(), distributions.versions(packages))
    key = recipe.key(contents if hook is None else contents + hook.read_text(encoding="utf-8"))
    image = Image(store / f"node-{key}")
    if image.folder.is_dir() and not fresh:
        os.utime(image.folder)  # the last used is the last to be removed
        return image
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=store) as scratch:
        base = _base(recipe, Path(scratch) if fresh else store)
        built = Path(scratch) / "built"
        built.mkdir()
        _say(f"laying the tree over {base.name}")
        with _unpacked(base, Path(scratch) / "root") as root:
            _assemble(recipe, root, built, packages)
        built.chmod(0o755)
        if image.folder.is_dir():
            shutil.rmtree(image.folder)
        built.rename(image.folder)
    forget_old(store)
    return image


def forget_old(store: Path, keep: int = 4) -> None:
    """Remove all but the last used images and bases."""
    for pattern in ("node-*", "base-*.tar", "layer-*"):
        for old in sorted(store.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)[keep:]:
            shutil.rmtree(old) if old.is_dir() else old.unlink()


def _say(text: str) -> None:
    print(f"image: {text}", file=sys.stderr, flush=True)


def _base(recipe: Recipe, store: Path) -> Path:
    """The tar of Debian's packages."""
    base = store / f"base-{recipe.base_key}.tar"
    if base.is_file():
        os.utime(base)
        return base
    _say(f"{len(recipe.debian)} packages and what they need, from Debian {recipe.suite}")
    fresh = base.with_suffix(f".{os.getpid()}")
    try:
        run(
            "unshare", "--mount",  # what it mounts while it works is nobody else's to see
            "mmdebstrap", "--mode=root", "--variant=minbase", "--format=tar", f"--include={','.join(recipe.debian)}",
            '--aptopt=APT::Install-Recommends "false"', "--dpkgopt=force-unsafe-io", *_merging(),
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED),
            *(f"--dpkgopt=path-include={pattern}" for pattern in KEPT),
            recipe.suite, fresh, *_sources(),
            # the initrd is made once, by us, when everything is there
            environment={"SOURCE_DATE_EPOCH": str(BASE_EPOCH), "INITRD": "No"},
        )  # fmt: skip
        fresh.rename(base)
    finally:
        fresh.unlink(missing_ok=True)
    return base


def _merging() -> list[str]:
    """Older Debian merges /usr by a package that brings all of Perl, unless it is merged from the start."""
    hook = Path("/usr/share/mmdebstrap/hooks/merged-usr")
    return [f"--hook-dir={hook}"] if hook.is_dir() else []


def _sources() -> list[str]:
    """This machine's own package sources: the image's packages come from where the machine's do."""
    places = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
    return [os.fspath(path) for path in places if path.is_file()]


@contextlib.contextmanager
def _unpacked(base: Path, root: Path) -> Iterator[Path]:
    root.mkdir()
    run("tar", "--extract", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--file", base, "--directory", root)
    try:
        yield root
    finally:
        run("rm", "-rf", "--one-file-system", root)


def _assemble(
    recipe: Recipe, root: Path, built: Path, packages: list[distributions.importlib.metadata.Distribution]
) -> None:
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    _lay_python(root, packages)
    _lay_files(recipe, root)
    run_hook(recipe, root)
    _compile(root)
    _take_kernel(recipe, root, built)
    manifest = _manifest(recipe, root, packages)
    (built / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _forget(root)
    run(
        "mksquashfs", root, built / "node.squashfs", "-quiet", "-no-progress", "-noappend", "-comp", "zstd",
        "-Xcompression-level", str(recipe.level), "-b", "1M" if recipe.level > 3 else "128K", "-no-exports",
        environment={"SOURCE_DATE_EPOCH": str(recipe.epoch)},
    )  # fmt: skip


def _hook(recipe: Recipe) -> Path | None:
    return None if recipe.gpu == "none" else HOOKS / recipe.gpu


def run_hook(recipe: Recipe, root: Path) -> None:
    """Have a shell in the root read the recipe's hook, with the builder's network. BuildError with its last words."""
    hook = _hook(recipe)
    if hook is None:
        return
    _say(f"the hook {hook.name} brings what its GPUs need")
    names = root / "etc/resolv.conf"
    shutil.copyfile("/etc/resolv.conf", names)
    try:
        _chroot(root, "/bin/sh", "-eu", "-s", stdin=hook, more=recipe.gpu_words)
    finally:
        names.unlink(missing_ok=True)


def _chroot(
    root: Path, *command: str, stdin: Path | None = None, more: Iterable[str] = (), epoch: int = BASE_EPOCH
) -> str:
    words = [
        "unshare",
        "--mount",
        "chroot",
        os.fspath(root),
        "/usr/bin/env",
        "-i",
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
    ]
    words += [
        "LC_ALL=C.UTF-8",
        "TZ=UTC",
        f"SOURCE_DATE_EPOCH={epoch}",
        "PYTHONHASHSEED=0",
        "DEBIAN_FRONTEND=noninteractive",
    ]
    with open(stdin or os.devnull, "rb") as given:
        done = subprocess.run(
            [*words, *more, *command], stdin=given, capture_output=True, text=True, errors="replace", check=False
        )
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise BuildError(f"{command[0]} in the image ended with {done.returncode}:\n{last}")
    return done.stdout


def site_of(root: Path) -> Path:
    """Where Python packages lie in the image."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return root / PREFIX / "lib" / version / "site-packages"


def _lay_python(root: Path, packages: list[distributions.importlib.metadata.Distribution]) -> None:
    """An environment of its own at /opt/kolejka, with the wheel of this tree."""
    site = site_of(root)
    site.mkdir(parents=True)
    own = root / PREFIX / "bin"
    own.mkdir()
    for name in ("python", "python3", site.parent.name):
        (own / name).symlink_to("/usr/bin/python3")
    (root / PREFIX / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    distributions.lay(packages, site)
    lay_project(site)
    (root / "usr/local/bin").mkdir(parents=True, exist_ok=True)
    for name, program in programs().items():
        if name != "kolejka-server":  # what it needs is no node's
            write_program(own / name, program)
            (root / "usr/local/bin" / name).symlink_to(f"/{PREFIX}/bin/{name}")


def programs() -> dict[str, importlib.metadata.EntryPoint]:
    """Our programs by name, as pyproject.toml declares them."""
    declared = importlib.metadata.entry_points(group="console_scripts")
    return {each.name: each for each in declared if each.module.startswith("kolejka.")}


def write_program(path: Path, program: importlib.metadata.EntryPoint) -> None:
    """A program of ours: what its entry point is, without the machinery that finds it."""
    words = f"from {program.module} import {program.attr}\n\n{program.attr}()\n"
    path.write_text(f"#!/{PREFIX}/bin/python\n{words}", encoding="utf-8")
    path.chmod(0o755)


def lay_project(site: Path) -> None:
    """This tree's wheel, made here without a network and unpacked."""
    with tempfile.TemporaryDirectory(prefix="kolejka-wheel-") as scratch:
        tree, wheels, unpacked = Path(scratch) / "tree", Path(scratch) / "wheels", Path(scratch) / "unpacked"
        for path in tree_files():
            if path.relative_to(PROJECT).parts[0] != "image":
                target = tree / path.relative_to(PROJECT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        run(
            sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation",
            "--disable-pip-version-check", "--wheel-dir", wheels, tree,
            environment={"SOURCE_DATE_EPOCH": str(BASE_EPOCH)},
        )  # fmt: skip
        run(sys.executable, "-m", "zipfile", "-e", next(wheels.iterdir()), unpacked)
        for path in sorted(unpacked.rglob("*")):
            target = site / path.relative_to(unpacked)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                shutil.copyfile(path, target)
                target.chmod(0o644)


def _lay_files(recipe: Recipe, root: Path) -> None:
    """Our own files, units and identity."""
    for path in tree_files():
        if path.is_relative_to(HERE / "root"):
            target = root / path.relative_to(HERE / "root")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            target.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
    (root / "etc/sudoers.d/admin").chmod(0o440)
    (root / "usr/lib/kolejka").mkdir(exist_ok=True)
    shutil.copyfile(HERE / "configure.py", root / "usr/lib/kolejka/configure.py")
    units = root / "etc/systemd/system"
    for name in SERVICES:
        shutil.copyfile(PROJECT / "kolejka/foreman/systemd" / f"{name}.service", units / f"{name}.service")
    own = sorted(path.name for path in units.glob("kolejka-*.service") if "@" not in path.name)
    _chroot(root, "systemctl", "--quiet", "enable", *own, *ENABLED)
    for name in MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    (root / "etc/kolejka").mkdir(mode=0o755, exist_ok=True)
    (root / "etc/kolejka/kolejka.toml").symlink_to("/run/kolejka/node/kolejka.toml")
    (root / "var/lib/kolejka").mkdir(mode=0o711)
    if recipe.engine in ENGINE_DATA:  # the boot script lays another file system there
        (root / ENGINE_DATA[recipe.engine]).mkdir(mode=0o710, exist_ok=True)
    if recipe.engine in ENGINE_SOCKETS:
        with (root / "usr/lib/kolejka/defaults.toml").open("a", encoding="utf-8") as defaults:
            defaults.write(f'[worker]\ndocker = "{ENGINE_SOCKETS[recipe.engine]}"\n')
        _chroot(root, "systemctl", "--quiet", "enable", "podman.socket")
    _chroot(
        root,
        "useradd",
        "--create-home",
        "--uid",
        "1000",
        "--groups",
        "sudo,systemd-journal",
        "--shell",
        "/bin/bash",
        "admin",
    )
    _chroot(root, "usermod", "--lock", "root")
    with (root / "usr/lib/os-release").open("a", encoding="utf-8") as release:
        release.write(f"IMAGE_ID={IMAGE_ID}\nIMAGE_VERSION={recipe.version}\n")


def _compile(root: Path) -> None:
    """Every Python module of the image, named by its content instead of its time: emulated machines start slowly
    enough.
    """
    for folder in ("opt/kolejka", "usr/lib/python3", f"usr/lib/{site_of(root).parent.name}"):
        for old in list((root / folder).rglob("__pycache__")):
            shutil.rmtree(old)
    _chroot(
        root, "/usr/bin/python3", "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash",
        "-x", r"/test/|lib2to3/tests/|/templates/", f"/{PREFIX}", "/usr/lib/python3",
        f"/usr/lib/{site_of(root).parent.name}",
    )  # fmt: skip


def _take_kernel(recipe: Recipe, root: Path, built: Path) -> None:
    scripts = root / "etc/initramfs-tools"
    shutil.copyfile(HERE / "boot/kolejka", scripts / "scripts/kolejka")
    shutil.copyfile(HERE / "boot/hook", scripts / "hooks/kolejka")
    (scripts / "hooks/kolejka").chmod(0o755)
    kernel = next((root / "boot").glob("vmlinuz-*"))
    version = kernel.name.removeprefix("vmlinuz-")
    _chroot(root, "mkinitramfs", "-o", "/boot/initrd", version, epoch=recipe.epoch)
    shutil.copyfile(kernel, built / "vmlinuz")
    with (built / "initrd").open("wb") as initrd:  # padded: further archives may follow it as they are
        cpio.append_file(initrd, root / "boot/initrd")
    shutil.copyfile(root / "usr/lib/systemd/boot/efi/systemd-bootx64.efi", built / "bootx64.efi")


def _manifest(
    recipe: Recipe, root: Path, packages: list[distributions.importlib.metadata.Distribution]
) -> dict[str, object]:
    listed = _chroot(root, "dpkg-query", "--show", "--showformat", "${Package}\t${Version}\t${Architecture}\n")
    return {
        "version": recipe.version,
        "suite": recipe.suite,
        "kernel": recipe.kernel,
        "engine": recipe.engine,
        "gpu": recipe.gpu,
        "debian": [
            dict(zip(("name", "version", "architecture"), line.split("\t"), strict=True))
            for line in listed.splitlines()
        ],
        "python": distributions.versions(packages),
    }


def _forget(root: Path) -> None:
    for pattern in FORGOTTEN:
        for path in list(root.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (root / "etc/machine-id").touch(mode=0o444)  # empty: systemd makes one for this boot
    (root / "etc/resolv.conf").symlink_to("/run/systemd/resolve/resolv.conf")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n", encoding="ascii")


def whole_initrd(image: Image, target: Path, *, files: Mapping[str, bytes] = {}, epoch: int = BASE_EPOCH) -> Path:
    """Write an initrd that has everything, for loaders that take one: the squashfs inside, and ``files`` below
    ``/kolejka`` (kolejka.toml, token, ca.pem, authorized_keys), readable by root only.
    """
    with target.open("wb") as whole:
        target.chmod(0o600 if files else 0o644)
        cpio.append_file(whole, image.initrd)
        inside: dict[str, Path | bytes] = {f"kolejka/{name}": content for name, content in files.items()}
        cpio.write_archive(whole, {"kolejka.squashfs": image.squashfs, **inside}, epoch)
    return target
