"""The user's side: tasks and results. The command line does nothing that this class does not.

Long waits are long polls, repeated as long as the transport is patient, so a restarted server ends none of them. A task
is put with an ``Idempotency-Key``, so that asking twice for want of an answer puts it once.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kolejka.client.base import ServerClient
from kolejka.client.results import check_files, check_result_folder, save_result
from kolejka.client.transport import IDEMPOTENCY_KEY, quoted
from kolejka.common.errors import Conflict, InputError, NotFound, Unavailable
from kolejka.common.limits import Limits
from kolejka.common.result import Result
from kolejka.common.states import TaskState
from kolejka.common.task import TASK_FILE, Task

LONG_POLL_S: Final = 30.0
SHORT_POLL_S: Final = 1.0
PAGE: Final = 500
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

    def upload_files(self, task: Task, folder: str | os.PathLike[str]) -> Task:
        """Store the local files of ``task``; the same task with references to them. InputError names the file."""
        files = dict(task.files)
        for name, file in task.files.items():
            if file.path is None:
                continue
            path = Path(folder) / file.path
            try:
                reference = self.put_blob(path)
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
        left, cursor = limit, None
        while left is None or left > 0:
            size = PAGE if left is None else min(left, PAGE)
            page = self.transport.request("GET", "/tasks", params={**words, "limit": size, "after": cursor}).object()
            with self.transport.understanding():
                found: list[dict[str, Any]] = [dict(task) for task in page["tasks"]][:size]
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
        if response.status != 200:
            return None
        try:
            result = Result.parse(response.json())
            check_files(result)
        except InputError as error:
            raise Unavailable(f"{self.server} sent a broken result: {error}", code="broken_result") from None
        if result.id not in {None, id}:
            raise Unavailable(f"{self.server} sent the result of another task", code="broken_result")
        return result

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
        try:
            save_result(result, folder, lambda reference, path, size: self.get_blob(reference, path, size=size))
        except NotFound:
            raise Unavailable(
                f"{self.server} has lost a file of the result of task {id}", code="broken_result"
            ) from None
        return result

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

    def nodes(self) -> list[dict[str, Any]]:
        """All nodes."""
        return self._list("/nodes", "nodes")

    def node(self, name: str) -> dict[str, Any]:
        """One node."""
        return self.transport.request("GET", f"/nodes/{quoted(name)}").object()

    def queues(self) -> list[dict[str, Any]]:
        """All queues."""
        return self._list("/queues", "queues")

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
        self, user: str, *, role: str | None = None, name: str | None = None, expires_s: float | None = None
    ) -> dict[str, Any]:
        """Make a token for ``user`` (for admins). Its ``token`` is shown this once and never again."""
        words = {"user": user, "role": role, "name": name, "expires_s": expires_s}
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
