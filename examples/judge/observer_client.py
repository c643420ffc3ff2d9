"""A client of the Kolejka observer in one file: standard library only, Python 3.6 or newer, usable in any image.

    from client import ObserverClient

    observer = ObserverClient("/run/kolejka/observer/socket")
    with observer.open({"memory": "64M", "time": "1s"}) as session:
        process = subprocess.Popen(...)     # held until it is in the session: see `kolejka-observer run`
        session.attach(process.pid)
        process.wait()
        print(session.stats())

A session is one accounted, limited control group. Its id and secret are all one needs to act on it; whoever does not
know them cannot. A program that is itself inside a session can open sessions only below its own.
"""

import http.client
import json
import socket
import threading
from typing import Any, Dict, List, Optional, Tuple

DEFAULT_SOCKET = "/run/kolejka/observer/socket"
CONTENT_TYPE = "application/json; charset=utf-8"


class ObserverError(Exception):
    """The observer refused: HTTP ``status``, ``code`` (a stable word), ``field`` (the wrong one, or None)."""

    def __init__(self, message: str, status: int = 0, code: str = "error", field: Optional[str] = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.field = field


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("kolejka-observer", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except BaseException:
            self.sock.close()
            self.sock = None
            raise


class ObserverClient:
    """One connection, kept open between requests. Safe from several threads, one request at a time.

    OSError (ConnectionError, FileNotFoundError, TimeoutError, ...) when nobody answers.
    """

    def __init__(self, socket_path: str = DEFAULT_SOCKET, timeout: float = 60.0) -> None:
        self.socket_path = socket_path
        self._connection = _Connection(socket_path, timeout)
        self._lock = threading.Lock()

    def ping(self) -> Dict[str, Any]:
        """The observer's own word about itself: {"status": "ok", "sessions": n}."""
        return self._request("GET", "/", None)

    def open(
        self, limits: Optional[Dict[str, Any]] = None, cpuset: Optional[List[int]] = None, bound: bool = False
    ) -> "Session":
        """Open a session: limits such as {"memory": "64M"}, cpuset a list of CPU numbers.

        ``bound``: kill and close it when this process dies. Otherwise it is closed when this process is dead and nobody
        is inside.
        """
        fields = {}  # type: Dict[str, Any]
        if limits is not None:
            fields["limits"] = limits
        if cpuset is not None:
            fields["cpuset"] = cpuset
        if bound:
            fields["bound"] = True
        return Session(self, self.post("/open", fields))

    def session(self, id: str, secret: str) -> "Session":
        """A session that somebody else opened."""
        return Session(self, {"session_id": id, "secret": secret})

    def post(self, path: str, fields: Dict[str, Any]) -> Dict[str, Any]:
        """One request; the answer as a dictionary. ObserverError when it is refused."""
        return self._request("POST", path, json.dumps(fields).encode("ascii"))

    def close(self) -> None:
        """Close the connection. Sessions stay."""
        with self._lock:
            self._connection.close()

    def _request(self, method: str, path: str, body: Optional[bytes]) -> Dict[str, Any]:
        headers = {} if body is None else {"Content-Type": CONTENT_TYPE}
        with self._lock:
            reused = self._connection.sock is not None
            try:
                try:
                    status, data = self._exchange(method, path, body, headers)
                except (BrokenPipeError, ConnectionResetError):
                    if not reused:
                        raise
                    # the observer had closed the idle connection, or was restarted
                    self._connection.close()
                    status, data = self._exchange(method, path, body, headers)
            except BaseException as error:  # the connection may be in the middle of an exchange
                self._connection.close()
                if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
                    raise ObserverError("this is not an observer: %s" % error) from None
                raise
        try:
            answer = json.loads(data.decode("utf-8")) if data else {}
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ObserverError("the answer is no JSON object", status)
        if status >= 400:
            told = answer.get("error")
            told = told if isinstance(told, dict) else {}
            raise ObserverError(
                told.get("message", "HTTP status %d" % status), status, told.get("code", "error"), told.get("field")
            )
        return answer

    def _exchange(self, method: str, path: str, body: Optional[bytes], headers: Dict[str, str]) -> Tuple[int, bytes]:
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        return response.status, response.read()


class Session:
    """One session. Used in a ``with`` block it is closed at the end."""

    def __init__(self, client: ObserverClient, answer: Dict[str, Any]) -> None:
        self._client = client
        self.id = str(answer["session_id"])
        self.secret = str(answer["secret"])
        self.cgroup_parent = str(answer.get("cgroup_parent", ""))

    def __repr__(self) -> str:
        return "<Session %s>" % self.id

    def __enter__(self) -> "Session":  # noqa: PYI034 - typing.Self is newer than the oldest Python this runs on
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def attach(self, pid: Optional[int] = None) -> None:
        """Move the calling process, or ``pid`` where that is allowed, into the session."""
        self._post("/attach", {} if pid is None else {"pid": pid})

    def detach(self) -> None:
        """Move the calling process out of the session, to where it was."""
        self._post("/detach", {})

    def limits(self, limits: Dict[str, Any]) -> None:
        """Set or change limits, such as {"memory": "64M", "time": "1s"}."""
        self._post("/limits", {"limits": limits})

    def stats(self) -> Dict[str, Any]:
        """What it used, and under "limit" what ended it. Answers for five minutes after close."""
        return self._post("/stats", {})

    def freeze(self) -> None:
        """Stop every process."""
        self._post("/freeze", {})

    def thaw(self) -> None:
        """Let every process go on."""
        self._post("/thaw", {})

    def kill(self) -> None:
        """Kill every process; the session stays open."""
        self._post("/kill", {})

    def close(self) -> Dict[str, Any]:
        """Kill what is left, and remove the session. Returns the final stats."""
        return self._post("/close", {})

    def _post(self, path: str, fields: Dict[str, Any]) -> Dict[str, Any]:
        fields["session_id"] = self.id
        fields["secret"] = self.secret
        return self._client.post(path, fields)
