"""The docker runtime: containers through the Docker API, of Docker or of Podman's socket.

The engine builds the world and starts our ``init`` in it (base.py); init connects to a socket that only it can see
before the payload exists, and the payload gets its standard streams over that socket. So the engine neither logs nor
carries a byte of output, its start and its own processes are not measured, and its way of driving control groups does
not matter: the held payload is moved into its session by us, as in the sandbox.

Everything the container may write is the working folder, ``/tmp`` and ``/dev/shm`` (folders of ours) and the
container's own layer; the latter three together are its storage, which the worker weighs. Where the engine's storage
driver shows no such layer the root is read-only.

The engine must run on this machine: it mounts our folders.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from kolejka.common.checks import Check
from kolejka.common.errors import KolejkaError, NodeError, NotFound, Unavailable
from kolejka.worker.runtimes import init, seccomp
from kolejka.worker.runtimes.base import (
    INIT,
    OBSERVER_SOCKET,
    START_TIMEOUT_S,
    STOP_TIMEOUT_S,
    WORK_FOLDER,
    Held,
    Run,
    Tell,
    candidates,
    parent,
    private_folder,
    unheard,
)
from kolejka.worker.trees import INODE, weight

if TYPE_CHECKING:
    from docker import APIClient

CONTROL: Final = "/run/kolejka/control"
LABEL: Final = "kolejka.run"
_API_TIMEOUT_S: Final = 300
_STOPPING: Final = ("is not running", "container state improper")
"""what Docker and Podman say when they fail to kill a container because it stops by itself at that moment"""
_ROOTLESS: Final = "it runs without root, and so has no users to give to payloads"


MASKED: Final = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap", "/proc/cmdline",
)  # fmt: skip
"""What no container sees: Docker's own list (``oci/defaults.go``), which ours replaces, and how the node was booted."""


class DockerTask(Held):
    """A payload in a container."""

    def __init__(self, client: APIClient, run: Run, layer: Path | None, channel: socket.socket) -> None:
        super().__init__(channel)
        self._client = client
        self._run = run
        self._layer = layer
        self._layer_base = weight(layer, INODE) if layer is not None and run.storage is not None else 0
        self._world: int | None = None
        self._removed = False

    def await_world(self) -> None:
        """Wait until the payload is held. NodeError when it does not come."""
        try:
            self.await_ready()
            with suppress(OSError):  # then we kill through the engine
                self._world = os.pidfd_open(parent(self.pid))
        except NodeError:
            self.remove()
            raise

    def storage_used(self) -> int | None:
        """Bytes in the container's layer and its scratch folders."""
        if self._run.storage is None:
            return None
        layer = weight(self._layer, INODE) - self._layer_base if self._layer is not None else 0
        scratch = sum(weight(self._run.folder / "scratch" / name, INODE) for name in ("tmp", "shm"))
        return max(0, layer) + scratch + self.unlinked(inside=False)

    def kill(self) -> None:
        """Kill PID 1 of the container, and so everything in it."""
        if self._removed:
            return
        if self._world is not None:
            with suppress(ProcessLookupError):  # gone already
                signal.pidfd_send_signal(self._world, signal.SIGKILL)
            return
        import docker.errors

        with suppress(docker.errors.APIError):  # not running any more
            self._client.kill(self._run.name)

    def remove(self) -> None:
        """Remove the container, when nobody in it is alive."""
        if self._removed:
            return
        if not self.wait_gone(STOP_TIMEOUT_S if self._world is None else 1.0):
            self.kill()
        self.channel.close()
        self.forget_world()
        if self._world is not None:
            os.close(self._world)
            self._world = None
        remove_container(self._client, self._run.name)
        self._removed = True


class Docker:
    """Containers of a Docker or Podman engine on this machine."""

    name: ClassVar[str] = "docker"
    enforces: ClassVar[frozenset[str]] = frozenset({"network", "storage", "gpus", "gpu_memory"})

    def __init__(self, data: Path, address: str = "") -> None:
        self._data = data
        self._address = address
        self.images = DockerImages(self)

    @cached_property
    def client(self) -> APIClient:
        """The connection to the engine. Unavailable with the cure where none answers."""
        try:
            import docker
            import docker.errors
            import docker.utils
        except ImportError:
            raise NodeError("the docker runtime needs the docker package; `pip install kolejka[node]`") from None
        words: dict[str, Any] = {"base_url": self._address} if self._address else {**docker.utils.kwargs_from_env()}
        try:
            return docker.APIClient(**words, version="auto", timeout=_API_TIMEOUT_S)
        except (docker.errors.DockerException, OSError) as error:
            where = words.get("base_url") or "the usual socket"
            reason = str(error).rpartition("(")[2].rstrip(")").rpartition(", ")[2].strip("'\"") or "no answer"
            raise Unavailable(f"no container engine answers at {where} ({reason}); start it or set --docker") from error

    @cached_property
    def _init(self) -> Path:
        return init.place(self._data / "programs")

    def prepare(self) -> None:
        """Reach the engine and put init in its place."""
        _ = self.client, self._init

    def check(self) -> Sequence[Check]:
        """Whether an engine answers that can hold payloads."""
        try:
            version = self.client.version()
        except KolejkaError as error:
            return [Check("container engine", False, error.message, "systemctl start docker")]
        if self._rootless:
            return [Check("container engine", False, _ROOTLESS, "systemctl start docker, or podman.socket")]
        kind = "Podman" if self._is_podman else "version"
        return [Check("container engine", True, f"{kind} {version.get('Version')} answers")]

    def start(self, run: Run) -> DockerTask:
        """Create and start the container, and hold the payload in it."""
        import docker.errors

        if self._rootless:
            raise NodeError(f"the container engine cannot be used: {_ROOTLESS}")
        if run.gpus and self._is_podman:  # it ignores the API's device requests
            raise NodeError(
                "Podman gives no GPUs by Docker's API; run it on Docker, or in the sandbox", field="limits.gpus"
            )
        control = run.folder / "control"
        control.mkdir(mode=0o755)
        (run.folder / "scratch").mkdir(mode=0o755)
        scratch = {name: private_folder(run.folder / "scratch" / name, run.uid, 0o1777) for name in ("tmp", "shm")}
        here = os.open(control, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
                door.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                door.bind(f"/proc/self/fd/{here}/socket")  # our own path may be longer than an address can be
                _own(control / "socket", run.uid)
                door.listen(1)
                door.settimeout(START_TIMEOUT_S)
                try:
                    layer = self._create(run, scratch, control)
                    self.client.start(run.name)
                    channel, _ = door.accept()
                except docker.errors.ImageNotFound:
                    raise NotFound(
                        f"there is no image {run.image!r}; `docker pull {run.image}`", field="image"
                    ) from None
                except TimeoutError:
                    raise NodeError(f"the container did not come up within {START_TIMEOUT_S:.0f} s") from None
                except (docker.errors.DockerException, OSError) as error:
                    cure = "; it gets GPUs by nvidia-container-toolkit" if "device driver" in str(error) else ""
                    raise NodeError(
                        f"the container engine cannot start the container: {_reason(error)}{cure}"
                    ) from error
        except BaseException:
            with suppress(KolejkaError):  # the first error matters more
                remove_container(self.client, run.name)
            raise
        finally:
            os.close(here)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        task = DockerTask(self.client, run, layer, channel)
        task.await_world()
        return task

    def _create(self, run: Run, scratch: Mapping[str, Path], control: Path) -> Path | None:
        """Create the container; the folder of its writable layer, where the driver has one."""
        import docker.types

        binds = [f"{run.workspace}:{WORK_FOLDER}", f"{self._init}:{INIT}:ro", f"{control}:{CONTROL}:ro"]
        binds += [f"{scratch['tmp']}:/tmp", f"{scratch['shm']}:/dev/shm"]
        if run.observer is not None:
            binds.append(f"{run.observer}:{OBSERVER_SOCKET}")
        layered = run.storage is None or self._layered
        paths = candidates(run.args, run.environment)
        requests = (
            [docker.types.DeviceRequest(driver="nvidia", device_ids=list(run.gpus), capabilities=[["gpu"]])]
            if run.gpus
            else None
        )
        host = self.client.create_host_config(
            binds=binds,
            network_mode="default" if run.network else "none",
            cgroupns="private",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges", f"seccomp={self._profile}", *self._podman_masks],
            log_config=docker.types.LogConfig(type="none"),
            read_only=not layered,
            tmpfs={"/sys/fs/cgroup": "ro,size=4k,mode=555"},  # in place of the host's control groups
            init=False,
            device_requests=requests,
        )
        host["MaskedPaths"] = list(MASKED)  # the library has no word for it
        self.client.create_container(
            run.image,
            name=run.name,
            entrypoint=[INIT],
            command=[f"{CONTROL}/socket", str(len(paths)), *paths, *run.args],
            environment=dict(run.environment),
            working_dir=WORK_FOLDER,
            user=f"{run.uid}:{run.uid}",
            hostname="kolejka",
            labels={LABEL: run.name},
            host_config=host,
        )
        if run.storage is None or not layered:
            return None
        driver = self.client.inspect_container(run.name)["GraphDriver"]
        return Path(driver["Data"]["UpperDir"])

    @cached_property
    def _about(self) -> dict[str, Any]:
        about: dict[str, Any] = self.client.info()
        return about

    @property
    def _rootless(self) -> bool:
        return any("rootless" in str(word) for word in self._about.get("SecurityOptions") or [])

    @cached_property
    def _is_podman(self) -> bool:
        parts = self.client.version().get("Components") or []
        return any("podman" in str(part.get("Name")).lower() for part in parts)

    @property
    def _podman_masks(self) -> list[str]:
        """Podman hears of masks by another word than Docker."""
        return ["mask=/proc/cmdline"] if self._is_podman else []

    @cached_property
    def _profile(self) -> str:
        """The system-call filter as this engine takes it: Docker the words, Podman a file that holds them."""
        words = seccomp.profile()
        if not self._is_podman:
            return words
        digest = hashlib.sha256(words.encode()).hexdigest()[:12]
        path = self._data.absolute() / "programs" / f"seccomp-{digest}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            fresh = path.with_suffix(f".{os.getpid()}")
            fresh.write_text(words, encoding="ascii")
            fresh.rename(path)
        return str(path)

    @cached_property
    def _layered(self) -> bool:
        """Whether the writable layer of a container is a folder that we can weigh."""
        return self._about.get("Driver") in {"overlay2", "overlay", "fuse-overlayfs"} and os.geteuid() == 0

    def sweep(self, name: str) -> None:
        """Remove the container of that name, if there is an engine and one is left."""
        with suppress(Unavailable):  # no engine, no container
            remove_container(self.client, name)


class DockerImages:
    """The engine's images."""

    def __init__(self, runtime: Docker) -> None:
        self._runtime = runtime

    def _about(self, image: str) -> dict[str, Any]:
        import docker.errors

        try:
            about: dict[str, Any] = self._runtime.client.inspect_image(image)  # type: ignore[no-untyped-call]  # no stub
        except docker.errors.NotFound:
            raise NotFound(
                f"the container engine has no image {image!r}; `docker pull {image}`", field="image"
            ) from None
        except docker.errors.APIError as error:
            raise NotFound(f"{image!r}: {_reason(error)}", field="image") from error
        return about

    def has(self, image: str) -> bool:
        """Whether the image is here."""
        try:
            self._about(image)
        except NotFound:
            return False
        return True

    def size(self, image: str) -> int:
        """Bytes of all layers."""
        return int(self._about(image)["Size"])

    def environment(self, image: str) -> Mapping[str, str]:
        """The variables that the image sets."""
        words = (self._about(image).get("Config") or {}).get("Env") or []
        return {name: value for name, _, value in (word.partition("=") for word in words)}

    def fetch(self, image: str, tell: Tell = unheard) -> None:
        """Pull the image."""
        import docker.errors

        layers: dict[str, tuple[int, int]] = {}
        try:
            for event in self._runtime.client.pull(image, stream=True, decode=True):
                if "error" in event:
                    raise NodeError(f"{image}: cannot be pulled: {event['error']}")
                progress = event.get("progressDetail") or {}
                if event.get("status") == "Downloading" and "total" in progress:
                    layers[str(event.get("id"))] = progress.get("current", 0), progress["total"]
                    tell(sum(done for done, _ in layers.values()), sum(total for _, total in layers.values()))
        except docker.errors.DockerException as error:
            raise NodeError(f"{image}: cannot be pulled: {_reason(error)}") from error

    def drop(self, image: str) -> None:
        """Remove the image."""
        import docker.errors

        self._about(image)
        try:
            self._runtime.client.remove_image(image)
        except docker.errors.APIError as error:
            raise NodeError(f"{image}: cannot be removed: {_reason(error)}") from error


def remove_container(client: APIClient, name: str) -> None:
    """Kill and remove a container with its volumes. One that is not there is fine; NodeError when it stays."""
    import docker.errors

    for pause_s in (0.02, 0.1, 0.5, None):
        try:
            client.remove_container(name, force=True, v=True)
        except docker.errors.NotFound:
            return
        except docker.errors.APIError as error:
            if error.status_code == 409 and "already in progress" in str(error):
                return
            if pause_s is None or not any(words in str(error) for words in _STOPPING):
                raise NodeError(f"container {name} cannot be removed: {_reason(error)}") from error
            time.sleep(pause_s)  # no event says when it has stopped enough to be removed
        else:
            return


def _own(path: Path, uid: int) -> None:
    if os.geteuid() == 0:
        os.chown(path, uid, uid)
    path.chmod(0o600)


def _reason(error: Exception) -> str:
    text = str(getattr(error, "explanation", None) or error)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
