"""``make demo``: one task through a server, an observer and a foreman of this machine, and nothing left afterwards.

Everything lives in one temporary folder: data, sockets, tokens. The control group has a name of its own, so that a
Kolejka that runs on this machine is not touched. What ``kolejka up`` started is ended also after a failure or Ctrl-C.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = Path(sys.executable).parent
PATIENCE_S = 60


def say(text: str) -> None:
    """A line for the person who watches."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def environment(folder: Path) -> dict[str, str]:
    """An environment in which all programs find each other, and none of the user's own settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KOLEJKA_")}
    return {
        **kept,
        "PATH": f"{PROGRAMS}:{kept.get('PATH', os.defpath)}",
        "XDG_CONFIG_HOME": str(folder / "config"),
        "KOLEJKA_SERVER_DATA": str(folder / "data/server"),
        "KOLEJKA_CLIENT_PATIENCE": f"{PATIENCE_S}s",
        "KOLEJKA_OBSERVER_CGROUP": f"kolejka-demo-{os.getpid()}",
    }


def run(words: Sequence[str], env: Mapping[str, str]) -> int:
    """Show a command and run it."""
    say(f"$ {shlex.join(words)}")
    return subprocess.run([str(PROGRAMS / words[0]), *words[1:]], env=env, cwd=ROOT, check=False).returncode


def stop(system: subprocess.Popen[bytes]) -> int:
    """End what ``kolejka up`` started: by a word, and if that is not heard, by force; its exit status."""
    if system.poll() is None:
        system.send_signal(signal.SIGTERM)
    try:
        return system.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(system.pid, signal.SIGKILL)
        return system.wait()


def address(system: subprocess.Popen[bytes], log: Path) -> str | None:
    """The server's address, once everything is ready; nothing when ``kolejka up`` ends or patience does."""
    for _ in range(PATIENCE_S * 20):
        text = log.read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^server +(http\S+)$", text, re.MULTILINE)
        if found and "Everything is ready" in text:
            say(text.split("\nEverything is ready")[0])
            return found[1]
        try:
            system.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
        return None
    return None


def demo(folder: Path) -> int:
    """Start the system, run a task, show its result; the exit status of the demonstration."""
    env = environment(folder)
    log = folder / "up.log"
    words = ["kolejka", "up", "--data", str(folder / "data"), "--port", "0"]
    say(f"$ {shlex.join(words)} &")
    with log.open("wb") as sink:
        system = subprocess.Popen(
            [str(PROGRAMS / words[0]), *words[1:]], env=env, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
            start_new_session=True,
        )  # fmt: skip
    status = 1
    try:
        server = address(system, log)
        if server is not None:
            env["KOLEJKA_CLIENT_SERVER"] = server
            result = folder / "RESULT"
            status = run(["kolejka-client", "execute", "examples/uname", str(result)], env)
            for name in ("kolejka_result.json", "stdout.txt"):
                if (result / name).exists():
                    say(f"\n{name}:\n{(result / name).read_text(encoding='utf-8').rstrip()}")
            if not (result / "stdout.txt").exists() or (result / "stdout.txt").read_text(encoding="utf-8") != "Linux\n":
                status = status or 1
    finally:
        ended = stop(system)
        if status != 0 or ended not in {0, -signal.SIGTERM, 128 + signal.SIGTERM}:
            say(f"\nkolejka up ended with status {ended}; its last words:")
            say("\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-60:]))
            status = status or 1
    say("\nEverything that was started is stopped." if status == 0 else "\nThe demonstration failed.")
    return status


def main() -> int:
    """Make the temporary folder, and take it away whatever happens."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="kolejka-demo-"))
    folder.chmod(0o711)  # payloads, which are other users, may pass but not look
    try:
        return demo(folder)
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
