"""Every example, through a whole cluster and through the worker alone, ends as its README says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from kolejka.common.result import Result
from tests.neighbours.cluster import ROOT, Cluster, copy_examples

EXAMPLES = sorted(path.name for path in (ROOT / "examples").iterdir() if path.is_dir())
CLAIM = re.compile(
    r": `(?P<command>kolejka-client execute [^`]+)` ends with exit status (?P<status>\d+), "
    r"outcome `(?P<outcome>\w+)`(?:, limit `(?P<limit>\w+)`)?\.$"
)


@dataclass(frozen=True)
class Readme:
    """What an example's README claims: the first line, what must be run before, the files of the result."""

    first: list[str]
    command: list[str]
    status: int
    outcome: str
    limit: str | None
    files: dict[str, str]
    needs: list[str]

    @classmethod
    def read(cls, name: str) -> Readme:
        """Read an example's README. AssertionError when the first line claims nothing."""
        text = (ROOT / "examples" / name / "README.md").read_text(encoding="utf-8")
        claim = CLAIM.search(text.splitlines()[0])
        assert claim is not None, f"examples/{name}/README.md: the first line does not say how it ends"
        before = re.search(r"First: `(kolejka-client execute [^`]+)`", text)
        return cls(
            first=before[1].split() if before else [],
            command=claim["command"].split(),
            status=int(claim["status"]),
            outcome=claim["outcome"],
            limit=claim["limit"],
            files=dict(re.findall(r"^```text (\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)),
            needs=re.findall(r"^Needs: (\w+)\.", text, re.MULTILINE),
        )

    def check(self, status: int, said: str, folder: Path) -> Result:
        """AssertionError unless the result in ``folder`` is what was claimed."""
        assert status == self.status, said
        result = Result.load(folder)
        assert (str(result.outcome), result.limit) == (self.outcome, self.limit), said
        for name, text in self.files.items():
            assert (folder / name).read_text(encoding="utf-8") == text
        assert set(self.files) <= set(result.files)
        assert "Traceback" not in said
        return result


def marked(name: str) -> object:
    """The example as a parameter, with the needs that its README states."""
    words = {"gcc": ["gcc"], "image": ["docker"], "observer": []}
    named = [need for word in Readme.read(name).needs for need in words[word]]
    return pytest.param(name, marks=pytest.mark.needs("root", "cgroups", "bwrap", *named))


def check_figures(name: str, result: Result) -> None:
    """What the READMEs say in prose about figures."""
    stats = result.stats
    assert stats.time is not None
    assert stats.cpu.usage is not None
    assert stats.memory.max_usage is not None
    if name == "memory-bomb":
        assert stats.memory.oom_kills
        assert stats.memory.max_usage <= 32 << 20
    if name == "fork-bomb":
        assert stats.pids.failures
        assert stats.pids.max_usage is not None
        assert stats.pids.max_usage <= 16
    if name == "time-bomb":
        assert stats.time >= 1.0
    if name == "c-compile":
        assert result.manifest["program"].mode == "0755"
    if name == "python":
        assert set(result.files) == {"stdout.txt", "stderr.txt", "report.json"}
    if name == "files":
        assert set(result.files) == {"log/stdout.txt", "counts/poem.lines", "counts/list.lines"}


@pytest.mark.parametrize("name", [marked(name) for name in EXAMPLES])
def test_an_example_ends_on_a_cluster_as_its_readme_says(name: str, cluster: Cluster, tmp_path: Path) -> None:
    copy_examples(tmp_path / "examples")
    readme = Readme.read(name)
    if readme.first:
        assert cluster.run(*readme.first, cwd=tmp_path).returncode == 0
    run = cluster.run(*readme.command, cwd=tmp_path)
    result = readme.check(run.returncode, run.stdout + run.stderr, tmp_path / readme.command[-1])
    check_figures(name, result)
    assert result.node is not None
    assert result.node["name"] == "tests"
    cluster.wait_empty()


@pytest.mark.parametrize("name", [marked(name) for name in EXAMPLES if "observer" not in Readme.read(name).needs])
def test_an_example_ends_at_the_worker_as_its_readme_says(name: str, alone: Cluster, open_path: Path) -> None:
    copy_examples(open_path / "examples")
    readme = Readme.read(name)
    for command in filter(None, (readme.first, readme.command)):
        run = alone.run("kolejka-worker", *command[1:], cwd=open_path)
    result = readme.check(run.returncode, run.stdout + run.stderr, open_path / readme.command[-1])
    check_figures(name, result)


def test_the_first_example_of_the_first_kolejka_is_kept_byte_for_byte() -> None:
    assert (ROOT / "examples/uname-image/kolejka_task.json").read_bytes() == (
        b'{ "image": "ubuntu:xenial", "args": ["uname"], "stdout": "stdout.txt",\n'
        b'  "limits": {"memory": "64M", "cpus": "1", "pids": "16", "time": "1s"} }\n'
    )


@pytest.mark.needs("root", "cgroups", "docker")
def test_the_first_example_runs_in_a_container(alone: Cluster, open_path: Path) -> None:
    run = alone.run("kolejka-worker", "execute", "examples/uname-image", open_path / "result", "--runtime", "docker")
    result = Readme.read("uname-image").check(run.returncode, run.stderr, open_path / "result")
    assert result.node is not None
    assert result.node["runtime"] == "docker"
    check_figures("uname-image", result)


@pytest.mark.needs("root", "cgroups", "bwrap")
def test_the_first_example_runs_in_the_sandbox_from_an_imported_root(
    alone: Cluster, busybox_root_tar: Path, open_path: Path
) -> None:
    imported = alone.run("kolejka-worker", "image", "import", "ubuntu:xenial", busybox_root_tar)
    assert imported.returncode == 0, imported.stderr
    run = alone.run("kolejka-worker", "execute", "examples/uname-image", open_path / "result", "--runtime", "sandbox")
    result = Readme.read("uname-image").check(run.returncode, run.stderr, open_path / "result")
    assert result.node is not None
    assert result.node["runtime"] == "sandbox"
    check_figures("uname-image", result)
