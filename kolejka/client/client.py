"""The user's side: tasks and results. The command line does nothing that this class does not.

Long waits are long polls, repeated as long as the transport is patient, so a restarted server ends none of them. A task
is put with an ``Idempotency-Key``, so that asking twice for want of an answer puts it once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kolejka.client.base import ServerClient
from kolejka.client.many import LONG_POLL_S, SHORT_POLL_S, Brought, Told, gather, until_done
from kolejka.client.results import check_files, check_result_folder, save_result
from kolejka.client.transport import IDEMPOTENCY_KEY, quoted, told_error
from kolejka.common.errors import Conflict, InputError, KolejkaError, NotFound, Unavailable
from kolejka.common.files import check_reference
from kolejka.common.limits import Limits
from kolejka.common.result import Result
from kolejka.common.states import TaskState
from kolejka.common.task import TASK_FILE, Task

LOG_STEP_S: Final = 20.0
"""how long one request waits for a node's log"""
PAGE: Final = 500
BULK: Final = 10_000
BULK_BYTES: Final = 4 << 20
"""JSON of one call that puts many tasks, about"""
BULK_PACE: Final = 200.0
"""tasks a second that even a slow server takes in one call"""
MAX_LINE: Final = 1 << 20
UNLIMITED: Final = Limits()
PREFIX_REACH: Final = 10_000
"""Newest tasks among which a shortened id is looked up."""


@dataclass(frozen=True)
class Progress:
    """What a waiting caller is told: the task's ``state``, why it waits, or where it runs."""

    task_id: str
    state: str
    why: str | None = None
    node: str | None = None


Tell = Callable[[Progress], object]


def _pieces(tasks: Iterable[tuple[str, Task]]) -> Iterator[list[tuple[str, Task]]]:
    """The tasks in pieces that one call takes, by number and by size."""
    piece: list[tuple[str, Task]] = []
    size = 0
    for word, task in tasks:
        length = len(json.dumps(task.to_json()))
        if piece and (len(piece) == BULK or size + length > BULK_BYTES):
            yield piece
            piece, size = [], 0
        piece.append((word, task))
        size += length + 2
    if piece:
        yield piece


def read_events(chunks: Iterable[bytes]) -> Iterator[tuple[str, int | None, dict[str, Any]]]:
    """Kind, number and data of each server-sent event in a stream of bytes. Unavailable when it is none."""
    rest = b""
    words: dict[str, str] = {}
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE:
            raise Unavailable("the server's events have a line without end", code="broken")
        for line in lines:
            name, _, value = line.decode(errors="replace").rstrip("\r").partition(": ")
            if name:
                words[name] = value
                continue
            if "event" in words:
                try:
                    number = int(words["id"]) if "id" in words else None
                    data = dict(json.loads(words.get("data", "{}")))
                except (ValueError, TypeError):
                    raise Unavailable("the server's events cannot be read", code="broken") from None
                yield words["event"], number, data
            words = {}


class KolejkaClient(ServerClient):
    """The user's side of one server.

    Every method raises InputError (or NotAllowed, NotFound, Conflict, which are its kinds) when the caller's words are
    wrong and Unavailable when the server does not answer.
    """

    def put_task(self, folder: str | os.PathLike[str], *, limits: Limits = UNLIMITED) -> dict[str, Any]:
        """Put the task in ``folder``, its files uploaded first; the server's task.

        ``limits`` merge with the task's own: the stricter holds.
        """
        task = Task.load(Path(folder))
        return self.put_spec(self.upload_files(task, folder).replace(limits=task.limits.merge(limits)))

    def upload_files(self, task: Task, folder: str | os.PathLike[str], *, known: dict[str, str] | None = None) -> Task:
        """Store the local files of ``task``; the same task with references to them. InputError names the file.

        ``known`` remembers, from one task of a batch to the next, which files were stored.
        """
        known = {} if known is None else known
        files = dict(task.files)
        for name, file in task.files.items():
            if file.path is None:
                continue
            path = Path(folder) / file.path
            try:
                reference = known.get(str(path)) or self.put_blob(path)
                known[str(path)] = reference
                executable = path.stat().st_mode & stat.S_IXUSR != 0 if file.executable is None else file.executable
            except InputError as error:
                raise error.within(f"files.{name}") from None
            except OSError as error:
                raise InputError(f"cannot be read: {error.strerror}", field=f"files.{name}: {path}") from None
            files[name] = type(file)(reference=reference, executable=executable or None)
        return task.replace(files=files)

    def put_spec(self, task: Task | Mapping[str, Any], *, key: str | None = None) -> dict[str, Any]:
        """Put a task whose files are blobs or inline; the server's task.

        The same ``key`` (at most 128 characters) puts the same task once, however often it is said.
        """
        parsed = task if isinstance(task, Task) else Task.parse(task)
        for name, file in parsed.files.items():
            if file.path is not None:
                raise InputError("a local file is put with its folder; use put_task", field=f"files.{name}")
        headers = {IDEMPOTENCY_KEY: key or uuid.uuid4().hex}
        return self.transport.request("POST", "/tasks", json=parsed.to_json(), headers=headers).object()

    def put_specs(self, tasks: Sequence[Task], *, key: str | None = None) -> list[dict[str, Any]]:
        """Put up to 10 000 tasks whose files are blobs or inline in one call: all of them, or none; in order.

        InputError names the place of the task that was refused: ``tasks[17].queue``. The same ``key`` puts the same
        tasks once.
        """
        headers = {IDEMPOTENCY_KEY: key or uuid.uuid4().hex}
        body = {"tasks": [task.to_json() for task in tasks]}
        timeout_s = self.settings.timeout + len(tasks) / BULK_PACE
        answer = self.transport.request("POST", "/tasks/bulk", json=body, headers=headers, timeout=timeout_s).object()
        with self.transport.understanding():
            return [dict(task) for task in answer["tasks"]]

    def put_many(self, tasks: Iterable[tuple[str, Task]]) -> Iterator[dict[str, Any]]:
        """Put tasks, each with a word for where it comes from, in as few calls as there can be; the server's tasks.

        They are read as they are sent, so there may be very many. Each call puts all of its tasks or none; an
        InputError names where the refused one comes from, and what was put before it stays.
        """
        for piece in _pieces(tasks):
            try:
                yield from self.put_specs([task for _, task in piece])
            except InputError as error:
                match = re.match(r"tasks\[([0-9]{1,6})\]\.?", error.field or "")
                if match is None or int(match[1]) >= len(piece):
                    raise
                rest = (error.field or "")[match.end() :]
                found = type(error)(error.message, field=rest or None, code=error.code)
                raise found.within(piece[int(match[1])][0]) from None

    def task(self, id: str) -> dict[str, Any]:
        """One task with its spec and its attempts."""
        return self.transport.request("GET", f"/tasks/{quoted(id)}").object()

    def tasks(
        self,
        *,
        state: str | None = None,
        queue: str | None = None,
        labels: Mapping[str, str] = {},
        name: str | None = None,
        owner: str | None = None,
        limit: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Tasks, newest first, at most ``limit``; the server is asked page by page."""
        words: dict[str, Any] = {"state": state, "queue": queue, "name": name, "owner": owner}
        words["label"] = [f"{key}={value}" for key, value in labels.items()] or None
        return self._pages("/tasks", "tasks", words, limit)

    def _pages(self, path: str, name: str, words: Mapping[str, Any], limit: int | None) -> Iterator[dict[str, Any]]:
        left, cursor = limit, None
        while left is None or left > 0:
            size = PAGE if left is None else min(left, PAGE)
            page = self.transport.request("GET", path, params={**words, "limit": size, "after": cursor}).object()
            with self.transport.understanding():
                found: list[dict[str, Any]] = [dict(item) for item in page[name]][:size]
                following = page.get("next")
            yield from found
            if left is not None:
                left -= len(found)
            if not following or following == cursor or not found:
                return
            cursor = following

    def find(self, selector: str) -> str:
        """The id that a person means: a full id, the only id that starts so, or ``last`` for one's newest task."""
        if selector == "last":
            mine = next(self.tasks(owner=str(self.whoami().get("user")), limit=1), None)
            if mine is None:
                raise NotFound("you have put no task yet", field="last")
            return str(mine["id"])
        with contextlib.suppress(NotFound):  # then it may be the start of one
            return str(self.task(selector)["id"])
        matches = [str(t["id"]) for t in self.tasks(limit=PREFIX_REACH) if str(t["id"]).startswith(selector)]
        if not matches:
            raise NotFound("there is no such task, or it is not yours; `kolejka task list` shows them", field=selector)
        if len(matches) > 1:
            raise InputError(
                f"{len(matches)} tasks start so, the newest is {matches[0]}; write more of its id", field=selector
            )
        return matches[0]

    def cancel(self, id: str) -> dict[str, Any]:
        """Cancel a task: a waiting one is done at once, a running one is killed on its node. Conflict when done."""
        return self.transport.request("POST", f"/tasks/{quoted(id)}/cancel").object()

    def retry(self, id: str) -> dict[str, Any]:
        """Put a done task once more, as a new task; that one. Conflict when it is not done."""
        headers = {IDEMPOTENCY_KEY: uuid.uuid4().hex}
        return self.transport.request("POST", f"/tasks/{quoted(id)}/retry", headers=headers).object()

    def delete(self, id: str) -> None:
        """Forget a task that is done, and its result. Conflict when it is not."""
        self.transport.request("DELETE", f"/tasks/{quoted(id)}")

    def why(self, id: str) -> dict[str, Any]:
        """Why a task is where it is: ``why`` in words, ``reasons`` one by one."""
        return self.transport.request("GET", f"/tasks/{quoted(id)}/why").object()

    def result(self, id: str, *, wait_s: float = 0.0) -> Result | None:
        """The result, or ``None`` when there is none within ``wait_s`` (at most 60 s)."""
        response = self.transport.request(
            "GET", f"/tasks/{quoted(id)}/result", params={"wait": f"{wait_s:g}"},
            timeout=wait_s + self.settings.timeout,
        )  # fmt: skip
        return None if response.status != 200 else self._understood(id, response.json())

    def _understood(self, id: str, data: Any) -> Result:
        """A result as the server sent it. Unavailable (``code`` broken_result) when it is none, or another task's."""
        try:
            result = Result.parse(data)
            check_files(result)
        except InputError as error:
            raise Unavailable(f"{self.server} sent a broken result: {error}", code="broken_result") from None
        if result.id not in {None, id}:
            raise Unavailable(f"{self.server} sent the result of another task", code="broken_result")
        return result

    def results(self, ids: Collection[str], *, wait_s: float = 0.0, enough: int = 1) -> dict[str, Told]:
        """What the server tells of up to 100 tasks (full ids) in one call: as soon as ``enough`` of them are done, or
        after ``wait_s`` (at most 60 s).

        One whose result is too large for a common answer is told as done, without it: ask for its ``result``.
        """
        params = {"tasks": ",".join(ids), "wait": f"{wait_s:g}", "enough": enough}
        timeout_s = wait_s + self.settings.timeout
        answer = self.transport.request("GET", "/tasks/results", params=params, timeout=timeout_s).object()
        with self.transport.understanding():
            told = {str(one["id"]): self._told(one) for one in answer["results"]}
            return {task_id: told[task_id] for task_id in ids}

    def _told(self, data: Mapping[str, Any]) -> Told:
        if "error" in data:
            return Told(error=told_error(data["error"]))
        try:
            found = data.get("result")
            return Told(str(data["state"]), None if found is None else self._understood(str(data["id"]), found))
        except Unavailable as error:
            return Told(TaskState.DONE, error=error)

    def wait_many(
        self, ids: Collection[str], timeout_s: float | None = None
    ) -> Iterator[tuple[str, Result | KolejkaError]]:
        """Wait until all of these tasks (full ids) are done; each with its result, or the error in its way, about as
        they come. A task that is not done when ``timeout_s`` have passed has the error Unavailable (``code`` timeout).
        """
        return until_done(self, ids, timeout_s)

    def wait(self, id: str, timeout_s: float | None = None, *, progress: Tell | None = None) -> Result:
        """Wait until the task is done; its result. Unavailable (``code`` timeout) when ``timeout_s`` pass before.

        ``progress`` is told now and then how things stand.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        told: Progress | None = None
        while True:
            poll_s = LONG_POLL_S if progress is None else SHORT_POLL_S if told else SHORT_POLL_S / 8
            if deadline is not None:
                poll_s = max(0.0, min(poll_s, deadline - time.monotonic()))
            result = self.result(id, wait_s=poll_s)
            if result is not None:
                return result
            if deadline is not None and time.monotonic() >= deadline:
                state = self.task(id).get("state", "not done")
                raise Unavailable(f"task {id} is still {state} after {timeout_s:g} s", code="timeout")
            if progress is not None:
                now = self._progress(id)
                if now != told:
                    progress(now)
                    told = now

    def _progress(self, id: str) -> Progress:
        task = self.task(id)
        state = str(task.get("state"))
        if state == TaskState.WAITING:
            return Progress(id, state, why=str(self.why(id).get("why") or ""))
        return Progress(id, state, node=str(task.get("node") or "") or None)

    def get_result(
        self,
        id: str,
        folder: str | os.PathLike[str],
        *,
        wait: bool = False,
        timeout_s: float | None = None,
        progress: Tell | None = None,
    ) -> Result:
        """Bring the result into ``folder``, which must not exist or be empty; whole or not at all.

        Conflict when the task is not done and ``wait`` is false.
        """
        check_result_folder(folder)
        result = self.wait(id, timeout_s, progress=progress) if wait else self.result(id)
        if result is None:
            raise Conflict(f"task {id} is {self.task(id).get('state')}; add --wait to wait for its result")
        return self.bring(id, result, folder)

    def bring(self, id: str, result: Result, folder: str | os.PathLike[str]) -> Result:
        """Make ``folder`` the folder of a result that is known, by bringing its files; whole or not at all."""
        try:
            save_result(result, folder, lambda reference, path, size: self.get_blob(reference, path, size=size))
        except NotFound:
            raise Unavailable(
                f"{self.server} has lost a file of the result of task {id}", code="broken_result"
            ) from None
        return result

    def get_many(
        self, places: Iterable[tuple[str, Path]], *, wait: bool = False, timeout_s: float | None = None
    ) -> Iterator[Brought]:
        """Bring the result of each task (a full id) into its folder, as ``get_result`` would; yields them in order.

        A folder that holds the result already is left as it is. What is wrong with one task (not done and ``wait``
        false, no such task, a folder that holds something else, ``timeout_s`` for all of them passed) is its
        ``error``; a server that does not answer and a disk that is full raise.
        """
        return gather(self, places, wait=wait, timeout_s=timeout_s)

    def execute(
        self,
        folder: str | os.PathLike[str],
        result_folder: str | os.PathLike[str],
        *,
        limits: Limits = UNLIMITED,
        progress: Tell | None = None,
    ) -> Result:
        """Put the task in ``folder``, wait for it, bring its result into ``result_folder``."""
        check_result_folder(result_folder)
        task = self.put_task(folder, limits=limits)
        return self.get_result(str(task["id"]), result_folder, wait=True, progress=progress)

    def events(self, *, after: int | None = None, task: str | None = None) -> Iterator[dict[str, Any]]:
        """What happens to tasks from now on (or behind the event ``after``), for as long as somebody asks.

        Each event is a dictionary: ``event`` (waiting, running, done, cancelling, deleted; gap when some were
        forgotten), ``id``, ``task``, ``at``, ``queue``, ``lease``, ``node``, ``outcome``. A connection that breaks is
        made anew where it broke, as long as the transport is patient.
        """
        at = after
        while True:
            response = self.transport.request("GET", "/events", params={"after": at, "task": task}, stream=True)
            with contextlib.suppress(Unavailable):  # it broke off; the next request is patient, or says why not
                for what, number, data in read_events(response.chunks()):
                    at = number if number is not None else at
                    if what != "hello":
                        yield {"event": what, "id": number, **data}
            self.transport.pause(SHORT_POLL_S)

    def blobs(self) -> Iterator[dict[str, Any]]:
        """The blobs that the caller uploaded, by hash; the server is asked page by page."""
        cursor: str | None = ""
        while cursor is not None:
            page = self.transport.request("GET", "/blobs", params={"limit": PAGE, "after": cursor or None}).object()
            with self.transport.understanding():
                found: list[dict[str, Any]] = [dict(one) for one in page["blobs"]]
                following = page.get("next")
            yield from found
            cursor = str(following) if following and following != cursor and found else None

    def delete_blob(self, reference: str) -> None:
        """Forget having uploaded a blob; tasks that refer to it keep it. NotFound when the caller has not."""
        self.transport.request("DELETE", f"/blobs/{check_reference(reference)}")

    def nodes(self) -> list[dict[str, Any]]:
        """All nodes."""
        return self._list("/nodes", "nodes")

    def node(self, name: str) -> dict[str, Any]:
        """One node."""
        return self.transport.request("GET", f"/nodes/{quoted(name)}").object()

    def enrolments(self) -> list[dict[str, Any]]:
        """The machines that ask to be let in as nodes (for admins and inspectors)."""
        return self._list("/enrolments", "enrolments")

    def approve_node(self, name: str, fingerprint: str | None = None) -> dict[str, Any]:
        """Let the machine in that asks under this name (for admins): it gets a token of its own.

        NotFound when none asks, Conflict when it takes the ``fingerprint`` to tell which one is meant.
        """
        which = {} if fingerprint is None else {"fingerprint": fingerprint}
        return self.transport.request("POST", f"/enrolments/{quoted(name)}/approve", json=which).object()

    def refuse_node(self, name: str, fingerprint: str | None = None) -> list[dict[str, Any]]:
        """Refuse the machines that ask under this name, or the one with the ``fingerprint`` (for admins)."""
        which = {} if fingerprint is None else {"fingerprint": fingerprint}
        found: list[dict[str, Any]] = self.transport.request(
            "POST", f"/enrolments/{quoted(name)}/refuse", json=which
        ).json()
        return found

    def drain_node(self, name: str) -> dict[str, Any]:
        """Ask a node to take no more tasks (for admins); the node."""
        return self.transport.request("POST", f"/nodes/{quoted(name)}/drain").object()

    def reboot_node(self, name: str, *, when_idle: bool = False) -> dict[str, Any]:
        """Ask a node to boot anew (for admins), now or when nothing runs there any more; the node.

        What runs is given back to the queue, unless ``when_idle``. The node tells with its next heartbeat that it did.
        """
        words = {"when_idle": when_idle}
        return self.transport.request("POST", f"/nodes/{quoted(name)}/reboot", json=words).object()

    def node_log(self, name: str, *, lines: int = 200, wait_s: float = 60.0) -> str:
        """The last lines of a node's log (for admins), which the node is asked for.

        Conflict when the node is silent, Unavailable when it has not answered within ``wait_s`` seconds.
        """
        deadline = time.monotonic() + wait_s
        while (left_s := deadline - time.monotonic()) > 0:
            step_s = min(left_s, LOG_STEP_S)
            answer = self.transport.request(
                "POST", f"/nodes/{quoted(name)}/log", json={"lines": lines, "wait": step_s},
                timeout=step_s + self.settings.timeout,
            )  # fmt: skip
            if answer.status == 200:
                with self.transport.understanding():
                    return str(answer.object()["log"])
        raise Unavailable(f"the node {name!r} has not sent its log within {wait_s:g} s")

    def resume_node(self, name: str) -> dict[str, Any]:
        """Ask a drained node to take tasks again (for admins); the node."""
        return self.transport.request("POST", f"/nodes/{quoted(name)}/resume").object()

    def delete_node(self, name: str) -> None:
        """Forget a node that is silent and will not come back (for admins). Conflict while it is heard."""
        self.transport.request("DELETE", f"/nodes/{quoted(name)}")

    def audit(self, *, user: str | None = None, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """What admins did, newest first, at most ``limit`` acts (for admins and inspectors)."""
        return self._pages("/audit", "acts", {"user": user}, limit)

    def make_callback_secret(self) -> str:
        """Make the key that signs one's callbacks, in place of any earlier. It is shown this once."""
        answer = self.transport.request("POST", "/callbacks/secret").object()
        with self.transport.understanding():
            return str(answer["secret"])

    def queues(self) -> list[dict[str, Any]]:
        """All queues."""
        return self._list("/queues", "queues")

    def queue(self, name: str) -> dict[str, Any]:
        """One queue with its policy."""
        return self.transport.request("GET", f"/queues/{quoted(name)}").object()

    def create_queue(self, name: str, policy: Mapping[str, Any]) -> dict[str, Any]:
        """Make a queue (for admins). Conflict when there is one of that name."""
        if any(known.get("name") == name for known in self.queues()):
            raise Conflict(f"there is a queue {name!r} already; `kolejka queue change` changes it")
        return self.transport.request("PUT", f"/queues/{quoted(name)}", json=dict(policy)).object()

    def change_queue(self, name: str, policy: Mapping[str, Any]) -> dict[str, Any]:
        """Change some fields of a queue's policy, such as its ``state`` (for admins)."""
        return self.transport.request("PATCH", f"/queues/{quoted(name)}", json=dict(policy)).object()

    def delete_queue(self, name: str) -> None:
        """Delete a queue (for admins). Conflict while tasks wait or run in it."""
        self.transport.request("DELETE", f"/queues/{quoted(name)}")

    def users(self) -> list[dict[str, Any]]:
        """All users (for admins)."""
        return self._list("/users", "users")

    def create_user(self, name: str, role: str) -> dict[str, Any]:
        """Make a user (for admins). Conflict when there is one of that name."""
        return self.transport.request("POST", "/users", json={"name": name, "role": role}).object()

    def tokens(self) -> list[dict[str, Any]]:
        """All tokens, without their secrets (for admins)."""
        return self._list("/tokens", "tokens")

    def create_token(
        self, user: str, *, role: str | None = None, name: str | None = None, expires_s: float | None = None,
        queues: Sequence[str] = (), read_only: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """Make a token for ``user`` (for admins). Its ``token`` is shown this once and never again.

        ``queues`` and ``read_only`` narrow it: to tasks of these queues, to reading.
        """
        scope = {**({"queues": list(queues)} if queues else {}), **({"read_only": True} if read_only else {})}
        words = {"user": user, "role": role, "name": name, "expires_s": expires_s, "scope": scope or None}
        body = {key: value for key, value in words.items() if value is not None}
        return self.transport.request("POST", "/tokens", json=body).object()

    def revoke_token(self, id: str) -> None:
        """End a token at once (for admins)."""
        self.transport.request("DELETE", f"/tokens/{quoted(id)}")

    def _list(self, path: str, name: str) -> list[dict[str, Any]]:
        """A listing, whether the server gives it bare or under its name."""
        answer = self.transport.request("GET", path).json()
        with self.transport.understanding():
            return [dict(item) for item in (answer[name] if isinstance(answer, dict) else answer)]


__all__ = ["TASK_FILE", "KolejkaClient", "Progress"]
