"""``make bench``: what a task costs, how long a result takes, how many tasks a second pass, alone and beside others.

The ways to start a program take turns, so that whatever else the machine does falls on all of them alike; compare
ratios of one run, not milliseconds of two. The table goes to standard output, all figures to ``bench-results.json``.
A way whose program is missing here is named and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from kolejka.client.client import KolejkaClient
from kolejka.common.limits import Limits
from kolejka.common.result import Outcome, Result
from kolejka.common.settings import WorkerSettings
from kolejka.common.task import Task
from kolejka.worker.job import Job
from kolejka.worker.pool import Pool
from tests.bench import heartbeats, peers, server_lifecycles
from tests.neighbours import needs
from tests.neighbours.cluster import Cluster
from tests.neighbours.docker import Docker
from tests.neighbours.rootfs import write_busybox_tar

ROOT = Path(__file__).resolve().parents[2]
LIMITS = Limits.of(
    memory="64M", swap=0, pids=16, cpus=1, time="10s", network=False, storage="64M", workspace="64M", output="1M"
)
"""Everything that a task of a server is limited in, by its default limits."""
Start = Callable[[], None]


def say(text: str = "") -> None:
    """A line for the person who watches."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median, 90th percentile and least, in milliseconds."""
    ordered = sorted(seconds)
    return {
        "median_ms": round(statistics.median(ordered) * 1000, 3),
        "p90_ms": round(ordered[int(len(ordered) * 0.9)] * 1000, 3),
        "least_ms": round(ordered[0] * 1000, 3),
        "count": len(ordered),
    }


def command(*words: str | os.PathLike[str]) -> Start:
    """A start by command line."""

    def start() -> None:
        subprocess.run(
            words, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    return start


# The ways to start a program


@contextmanager
def warm_worker(folder: Path, root: Path | None) -> Iterator[Start]:
    """A task in a sandbox, limited and accounted, by a worker process that is there already."""
    place = folder / ("image" if root else "plain")
    settings = WorkerSettings(data=place / "data")
    task = place / "task"
    task.mkdir(parents=True)
    image = None
    if root is not None:
        image = "kolejka/bench:latest"
        tar = folder / "busybox.tar"
        subprocess.run(
            [Path(sys.executable).with_name("kolejka-worker"), "image", "import", image, tar, "--data", settings.data],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    Task(("true",), image=image).save(task)
    pool = Pool(settings, 1)
    pool.start()
    results = place / "results"
    results.mkdir()
    number = 0

    def start() -> None:
        nonlocal number
        number += 1
        result = pool.run(Job(task, results / str(number), None, LIMITS, runtime="sandbox"))
        if result.outcome is not Outcome.OK or result.stats.memory.max_usage is None:
            raise RuntimeError(f"the task did not run as it should: {result}")

    try:
        yield start
    finally:
        pool.stop(10)


def bare_bwrap(root: Path) -> Start:
    """The same namespaces by bubblewrap's command line: no limits, no accounting, no result."""
    program = needs.bwrap()
    assert program is not None
    return command(
        program, "--unshare-all", "--die-with-parent", "--ro-bind", root, "/", "--proc", "/proc", "--dev", "/dev",
        "--tmpfs", "/tmp", "--", "/bin/true",
    )  # fmt: skip


@contextmanager
def runc(folder: Path, root: Path) -> Iterator[Start]:
    """A container with the same limits by runc."""
    program = needs.find("runc") or ""
    bundle = folder / "bundle"
    bundle.mkdir()
    subprocess.run([program, "spec", "--bundle", bundle], check=True)
    spec = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    spec["process"].update(terminal=False, args=["/bin/true"])
    spec["root"] = {"path": str(root), "readonly": True}
    group = f"kolejka-bench-{os.getpid()}"
    spec["linux"]["cgroupsPath"] = f"/{group}/container"
    spec["linux"]["resources"].update(
        memory={"limit": LIMITS.get("memory"), "swap": LIMITS.get("memory")}, pids={"limit": LIMITS.get("pids")}
    )
    (bundle / "config.json").write_text(json.dumps(spec), encoding="utf-8")
    try:
        yield command(program, "--root", folder / "runc", "run", "--bundle", bundle, "kolejka-bench")
    finally:
        for place in Path("/sys/fs/cgroup").glob(f"*/{group}"):
            place.rmdir()


@contextmanager
def docker_run(folder: Path) -> Iterator[Start]:
    """``docker run --rm`` with the same limits and image."""
    engine = Docker()
    try:
        engine.start()
        engine.import_image(folder / "busybox.tar", "kolejka/bench:latest")
        yield command(
            needs.find("docker") or "docker", "--host", engine.url, "run", "--rm", "--network", "none",
            "--memory", "64m",
            "--memory-swap", "64m", "--pids-limit", "16", "--cpus", "1", "kolejka/bench:latest", "/bin/true",
        )  # fmt: skip
    finally:
        engine.stop()


def measure_starts(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of one start, way by way, in turns."""
    tar = write_busybox_tar(folder / "busybox.tar")
    root = folder / "root"
    root.mkdir()
    subprocess.run(["tar", "-xf", tar, "-C", root], check=True)
    with ExitStack() as open_ways:
        ways: dict[str, Start] = {
            "kolejka, no image": open_ways.enter_context(warm_worker(folder, None)),
            "kolejka, image": open_ways.enter_context(warm_worker(folder, root)),
            "plain exec": command("/bin/true"),
            "bare bwrap": bare_bwrap(root),
        }
        if needs.lacking("runc"):
            say(f"left out: runc ({needs.lacking('runc')})")
        else:
            ways["runc run"] = open_ways.enter_context(runc(folder, root))
        if needs.lacking("docker"):
            say(f"left out: docker run ({needs.lacking('docker')})")
        else:
            ways["docker run"] = open_ways.enter_context(docker_run(folder))
        # The daemon is busy for a while after each container, so its turns come after those of the others.
        heavy = {name: ways.pop(name) for name in ("docker run",) if name in ways}
        taken = {**take_turns(ways, rounds), **take_turns(heavy, max(rounds // 4, 10))}
    figures: dict[str, Any] = {name: quantiles(seconds) for name, seconds in taken.items()}
    unit = figures["bare bwrap"]["median_ms"]
    for entry in figures.values():
        entry["times_bare_bwrap"] = round(entry["median_ms"] / unit, 2)
    return figures


def take_turns(ways: dict[str, Start], rounds: int) -> dict[str, list[float]]:
    """Seconds of every start, way by way; the first three rounds warm caches and do not count."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 3):
        for name, start in ways.items():
            begun = time.perf_counter()
            start()
            if turn >= 3:
                taken[name].append(time.perf_counter() - begun)
    return taken


def measure_throughput(start: Start, count: int) -> float:
    """Starts per second with one loop of them for each processor of this machine, as a node has slots."""
    loops = os.cpu_count() or 1
    begun = time.perf_counter()
    with ThreadPoolExecutor(loops) as pool:
        for done in [pool.submit(start) for _ in range(count)]:
            done.result()
    return round(count / (time.perf_counter() - begun), 1)


# A whole cluster


def measure_cluster(folder: Path, rounds: int, tasks: int) -> dict[str, Any]:
    """Put → start of the program, put → result on an idle cluster, and tasks per second from a call that
    puts many to the last result.
    """
    state = tempfile.mkdtemp(prefix="kolejka-bench-", dir="/dev/shm")  # on nodes it is in memory, too: /run
    cluster = Cluster(folder, {"KOLEJKA_OBSERVER_STATE": state}, log_level="info")  # as people run it
    spec = {"args": ["true"], "limits": {"memory": "16M", "pids": 8, "time": "10s", "workspace": "1M", "storage": "1M"}}
    try:
        cluster.start()
        client = cluster.admin
        latency = []
        for turn in range(rounds + 3):
            begun = time.perf_counter()
            result = client.wait(client.put_spec(spec)["id"], 60)
            if result.outcome is not Outcome.OK:
                raise RuntimeError(f"the task did not run as it should: {result}")
            if turn >= 3:
                latency.append(time.perf_counter() - begun)
        starts = [when - asked for asked, when in (put_clock(client, spec, folder) for _ in range(rounds + 3))][3:]
        begun = time.perf_counter()
        put = [task["id"] for task in client.put_many(("", Task.parse(spec)) for _ in range(tasks))]
        for _, result in client.wait_many(put, 300):
            if not isinstance(result, Result) or result.outcome is not Outcome.OK:
                raise RuntimeError(f"the task did not run as it should: {result}")
        ended = time.perf_counter()
        for _ in range(tasks):
            client.put_spec({**spec, "requires": ["nobody"]})
        all_put = time.perf_counter()
    finally:
        cluster.stop()
        shutil.rmtree(state)
    return {
        "put to start, idle": quantiles(starts),
        "put to result, idle": quantiles(latency),
        "puts per second, one by one": round(tasks / (all_put - ended), 1),
        "tasks per second, end to end": round(tasks / (ended - begun), 1),
        "tasks": tasks,
    }


def put_clock(client: KolejkaClient, spec: dict[str, Any], folder: Path) -> tuple[float, float]:
    """When a task was put, and when its program looked at the clock, which it does as soon as it runs."""
    asked = time.time()
    task = client.put_spec({**spec, "args": ["date", "+%s.%N"], "stdout": "clock"})["id"]
    client.wait(task, 60)
    place = folder / f"clock-{task}"
    client.get_result(task, place)
    return asked, float((place / "clock").read_text(encoding="ascii"))


def show(data: dict[str, Any]) -> None:
    """The tables."""
    starts, cluster = data["starts"], data["cluster"]
    say(f"\n{'one start of true':24} {'median':>10} {'p90':>10} {'least':>10} {'x bwrap':>8}")
    for name, entry in sorted(starts.items(), key=lambda item: float(item[1]["median_ms"])):
        say(
            f"{name:24} {entry['median_ms']:>7.2f} ms {entry['p90_ms']:>7.2f} ms {entry['least_ms']:>7.2f} ms"
            f" {entry['times_bare_bwrap']:>8.2f}"
        )
    latency = cluster["put to result, idle"]
    starting = cluster["put to start, idle"]
    say(f"\nput → program, idle      {starting['median_ms']:>7.2f} ms {starting['p90_ms']:>7.2f} ms")
    say(f"put → result, idle       {latency['median_ms']:>7.2f} ms {latency['p90_ms']:>7.2f} ms")
    say(f"puts per second          {cluster['puts per second, one by one']:>7.1f}   (one by one)")
    rate, bare = cluster["tasks per second, end to end"], data["bare bwrap per second, one loop per processor"]
    say(f"tasks per second         {rate:>7.1f}   ({cluster['tasks']} tasks, {os.cpu_count()} processors)")
    say(f"bare bwrap per second    {bare:>7.1f}   (one loop per processor; tasks to these: {rate / bare:.2f})")
    lifecycles = {
        f"kolejka-server, {way.replace('_', ', ')}": entry["lifecycles_per_s"]
        for way, entry in data["server"].items()
        if isinstance(entry, dict)
    }
    unit = next(iter(lifecycles.values()))
    say(f"\n{'no-op tasks per second':40} {'':>9} {'x first':>8}")
    for name, figure in {**lifecycles, **data["peers"]}.items():
        say(f"{name:40} {figure:>9.1f} {figure / unit:>8.2f}")
    beats = data["heartbeats"]
    say(f"\nheartbeats of {beats['nodes']} nodes take {beats['part_of_one_cpu']} of one processor")


def main() -> int:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(description="Measure what a task costs.")
    parser.add_argument("--rounds", type=int, default=60, help="starts of each way (default 60)")
    parser.add_argument("--tasks", type=int, default=1000, help="tasks for the throughput (default 1000)")
    words = parser.parse_args()
    for name in ("root", "cgroups", "bwrap", "busybox"):
        if needs.lacking(name):
            say(f"bench: {needs.lacking(name)}; {needs.NEEDS[name].cure}")
            return 1
    folder = Path(tempfile.mkdtemp(prefix="kolejka-bench-"))
    folder.chmod(0o711)
    try:
        (folder / "starts").mkdir(mode=0o711)
        (folder / "cluster").mkdir(mode=0o711)
        starts = measure_starts(folder / "starts", words.rounds)
        cluster = measure_cluster(folder / "cluster", words.rounds, words.tasks)
        bare = measure_throughput(bare_bwrap(folder / "starts" / "root"), words.tasks)
        server = server_lifecycles.run()["server"]
        beats = heartbeats.run()
        others = peers.run(say)
    finally:
        shutil.rmtree(folder)
    machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "python": platform.python_version()}
    data = {
        "machine": machine, "starts": starts, "cluster": cluster,
        "bare bwrap per second, one loop per processor": bare,
        "server": server, "heartbeats": beats, "peers": others,
    }  # fmt: skip
    (ROOT / "bench-results.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    show(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
