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

DEFAULT_SOCKET = "/run/kolejka/observer/socket"
CONTENT_TYPE = "application/json; charset=utf-8"


class ObserverError(Exception):
    """The observer refused. ``status`` is the HTTP status, ``code`` a stable word, ``field`` the wrong field or None."""

    def __init__(self, message, status=0, code="error", field=None):
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.field = field


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path, timeout):
        super().__init__("kolejka-observer", timeout=timeout)
        self._path = path

    def connect(self):
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

    def __init__(self, socket_path=DEFAULT_SOCKET, timeout=60.0):
        self.socket_path = socket_path
        self._connection = _Connection(socket_path, timeout)
        self._lock = threading.Lock()

    def ping(self):
        """The observer's own word about itself: {"status": "ok", "sessions": n}."""
        return self._request("GET", "/", None)

    def open(self, limits=None, cpuset=None, bound=False):
        """Open a session: limits such as {"memory": "64M"}, cpuset a list of CPU numbers.

        ``bound``: kill and close it when this process dies. Otherwise it is closed when this process is dead and nobody
        is inside.
        """
        fields = {}
        if limits is not None:
            fields["limits"] = limits
        if cpuset is not None:
            fields["cpuset"] = cpuset
        if bound:
            fields["bound"] = True
        return Session(self, self.post("/open", fields))

    def session(self, id, secret):
        """A session that somebody else opened."""
        return Session(self, {"session_id": id, "secret": secret})

    def post(self, path, fields):
        """One request; the answer as a dictionary. ObserverError when it is refused."""
        return self._request("POST", path, json.dumps(fields).encode("ascii"))

    def close(self):
        """Close the connection. Sessions stay."""
        with self._lock:
            self._connection.close()

    def _request(self, method, path, body):
        headers = {} if body is None else {"Content-Type": CONTENT_TYPE}
        with self._lock:
            reused = self._connection.sock is not None
            try:
                status, data = self._exchange(method, path, body, headers)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                self._connection.close()
                if not reused:
                    raise
                # the observer had closed the idle connection, or was restarted
                status, data = self._exchange(method, path, body, headers)
            except BaseException as error:
                self._connection.close()
                if isinstance(error, http.client.HTTPException):
                    raise ObserverError("this is not an observer: %s" % error)
                raise
        try:
            answer = json.loads(data.decode("utf-8")) if data else {}
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ObserverError("the answer is no JSON object", status)
        if status >= 400:
            error = answer.get("error")
            error = error if isinstance(error, dict) else {}
            raise ObserverError(
                error.get("message", "HTTP status %d" % status), status, error.get("code", "error"), error.get("field")
            )
        return answer

    def _exchange(self, method, path, body, headers):
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        return response.status, response.read()


class Session:
    """One session. Used in a ``with`` block it is closed at the end."""

    def __init__(self, client, answer):
        self._client = client
        self.id = answer["session_id"]
        self.secret = answer["secret"]
        self.cgroup_parent = answer.get("cgroup_parent", "")

    def __repr__(self):
        return "<Session %s>" % self.id

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self.close()

    def attach(self, pid=None):
        """Move the calling process, or ``pid`` where that is allowed, into the session."""
        self._post("/attach", {} if pid is None else {"pid": pid})

    def detach(self):
        """Move the calling process out of the session, to where it was."""
        self._post("/detach", {})

    def limits(self, limits):
        """Set or change limits, such as {"memory": "64M", "time": "1s"}."""
        self._post("/limits", {"limits": limits})

    def stats(self):
        """What it used, and under "limit" what ended it. Answers for five minutes after close."""
        return self._post("/stats", {})

    def freeze(self):
        """Stop every process."""
        self._post("/freeze", {})

    def thaw(self):
        """Let every process go on."""
        self._post("/thaw", {})

    def kill(self):
        """Kill every process; the session stays open."""
        self._post("/kill", {})

    def close(self):
        """Kill what is left, and remove the session. Returns the final stats."""
        return self._post("/close", {})

    def _post(self, path, fields):
        fields["session_id"] = self.id
        fields["secret"] = self.secret
        return self._client.post(path, fields)
