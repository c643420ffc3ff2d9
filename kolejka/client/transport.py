"""The one place that sends HTTP.

A ``Transport`` knows one server, one token and how long to be patient. It turns every way in which a conversation can
end into a value or into one of the errors of ``kolejka.common.errors``:

===============================================  ==========================================================
what happened                                    error
===============================================  ==========================================================
401, 403                                         NotAllowed (``code`` unauthorized or forbidden)
404                                              NotFound
409                                              Conflict
400, 413, 422, any other 4xx                     InputError with the server's ``field``
429, 5xx, nobody answers, the connection breaks  Unavailable
answers that no Kolejka server gives             InputError about the server's address
===============================================  ==========================================================

*Patience.* A server that answered once is a server that will come back: requests that may be repeated are repeated with
growing pauses for ``patience`` seconds. A server that never answered is more likely a wrong address, so the first
request fails at once (unless the caller asks for patience by name). A request may be repeated when its method is
idempotent, when it carries an ``Idempotency-Key``, or when it never reached anybody (connection refused; 429 and 503
say that nothing was done). A connection that breaks in the middle of a request is tried a few times only, because a
server that refuses a body by hanging up would be asked for ever otherwise.

*Trust.* The server's words are bounded in size and stripped of control characters before they become messages. The
token goes into the one header and nowhere else: no error, log line or ``repr`` holds it, ``.netrc`` is not asked, and
redirects, which could carry it elsewhere, are not followed. Blobs may travel ``elsewhere``, to and from the address of
a blob store that the server names: without the token, never from TLS to plain HTTP, and hashed by us like all bytes.

requests is imported with the first request, so that ``--help`` does not wait for it.
"""

from __future__ import annotations

import ipaddress
import json as json_format
import logging
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import quote, urlsplit

from kolejka import __version__
from kolejka.common.errors import Conflict, InputError, KolejkaError, NotAllowed, NotFound, Unavailable
from kolejka.common.files import CHUNK

if TYPE_CHECKING:
    import requests

logger = logging.getLogger(__name__)

API: Final = "/api/v1"
MAX_ANSWER: Final = 256 << 20
"""Bytes of the largest JSON answer that is read; a result may name very many files."""
IDEMPOTENCY_KEY: Final = "Idempotency-Key"
MAX_BREAKS: Final = 5
"""How often in a row a connection may break in the middle of one request."""

_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})
_COME_BACK: Final = frozenset({429, 502, 503, 504})
_NOTHING_DONE: Final = frozenset({429, 503})
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 5.0
_NO_HOST: Final = re.compile(r"[\s\\^`{|}<>\"]")
"""What stands in no host's name."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")

Body = bytes | Callable[[], Iterable[bytes]]
"""What a request carries: bytes, or a function that gives them anew for every try, as chunks of a known ``len``."""


def printable(text: object, limit: int = 1000) -> str:
    """Foreign words fit for a terminal and a log: one line, no control characters, not endless."""
    line = _CONTROL.sub(" ", str(text)).strip()
    return line if len(line) <= limit else line[: limit - 1] + "…"


def server_url(server: str) -> str:
    """The server's address in its one spelling: scheme, host and port in lower case, no trailing slash.

    InputError when it is no address.
    """
    try:
        parts = urlsplit(server.strip())
        port = parts.port
    except ValueError:
        raise InputError(f"{server!r} is no address; write http://HOST:PORT", field="server") from None
    if parts.scheme.lower() not in {"http", "https"} or not parts.hostname or _NO_HOST.search(parts.hostname):
        raise InputError(f"{server!r} is no address; write http://HOST:PORT or https://HOST", field="server")
    if parts.username is not None or parts.password is not None:
        raise InputError("an address holds no user and password; use a token (`kolejka login`)", field="server")
    if parts.query or parts.fragment:
        raise InputError(f"{server!r} is more than an address; write http://HOST:PORT", field="server")
    scheme = parts.scheme.lower()
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    usual = {"http": 80, "https": 443}[scheme]
    place = host if port in {None, usual} else f"{host}:{port}"
    return f"{scheme}://{place}{parts.path.rstrip('/')}"


def is_loopback(server: str) -> bool:
    """Whether the server's address is this machine's own."""
    host = urlsplit(server).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Response:
    """An answer of status 2xx: its JSON, or (for a request with ``stream``) its bytes as they come."""

    def __init__(self, raw: requests.Response, url: str, body: bytes | None) -> None:
        self._raw = raw
        self._url = url
        self._body = body
        self.status: int = raw.status_code
        self.headers: Mapping[str, str] = raw.headers

    def json(self) -> Any:
        """The JSON value. InputError when the body is none."""
        try:
            return json_format.loads(self._body or b"")
        except (ValueError, RecursionError):
            _not_kolejka(self._url, "its answer is not JSON")

    def object(self) -> dict[str, Any]:
        """The JSON object. InputError when the body is anything else."""
        value = self.json()
        if not isinstance(value, dict):
            _not_kolejka(self._url, "its answer is not the object that was asked for")
        return value

    def chunks(self, size: int = CHUNK) -> Iterator[bytes]:
        """The body as it comes. Unavailable when it breaks off before its announced end."""
        import requests

        try:
            yield from self._raw.iter_content(size)
        except (requests.RequestException, OSError) as error:
            raise Unavailable(f"{self._url} broke off in the middle: {_cause(error)}", code="broken") from None
        finally:
            self.close()

    def close(self) -> None:
        """Give the connection back. Twice is fine."""
        self._raw.close()


class Transport:
    """Requests to one server. Safe to use from several threads; keeps connections open between requests.

    ``server`` is its address, ``token`` what to show (``None`` = nothing), ``token_source`` where the token came from
    (for messages) and ``look_again`` what is there now, asked when the server knows the token no more. ``ca`` is a file
    of certificates to trust beside the system's, ``timeout_s`` how long one request may stay without a byte,
    ``patience_s`` how long a server that answered before is waited for.
    """

    def __init__(
        self,
        server: str,
        token: str | None = None,
        *,
        token_source: str = "",
        look_again: Callable[[], str | None] = lambda: None,
        ca: str = "",
        timeout_s: float = 60.0,
        patience_s: float = 600.0,
        direct: bool = True,
    ) -> None:
        self.server = server_url(server)
        _check_token(token, token_source or "token")
        self._token = token
        self._look_again = look_again
        self._token_source = token_source
        self._ca = ca
        self.timeout_s = timeout_s
        self.patience_s = patience_s
        self.direct = direct
        """whether blobs may travel by addresses of a blob store that the server names"""
        self.cure = f"run `kolejka login --server {self.server}`"
        """what gives a better token"""
        self.met = False
        """whether this server has ever answered"""
        self._session: requests.Session | None = None
        self._stranger_session: requests.Session | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def __repr__(self) -> str:
        return f"Transport({self.server!r})"

    def close(self) -> None:
        """Close the connections and end the pauses of waiting requests. Twice is fine."""
        self._closed.set()
        with self._lock:
            for session in (self._session, self._stranger_session):
                if session is not None:
                    session.close()

    @contextmanager
    def understanding(self) -> Iterator[None]:
        """Turn an answer that lacks what it should hold into the InputError about the server's address."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            logger.debug("answer not understood", exc_info=error)
            _not_kolejka(self.server + API, "its answer is not what was asked for")

    def pause(self, seconds: float) -> None:
        """Wait before trying again, or until the transport is closed."""
        self._closed.wait(seconds)

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        data: Body | None = None,
        headers: Mapping[str, str] | None = None,
        stream: bool = False,
        timeout: float | None = None,
        patience: float | None = None,
    ) -> Response:
        """Send a request, repeat it where that is safe, and give the answer of status 2xx.

        ``path`` starts below ``/api/v1`` (``/tasks``); one that starts with ``//`` starts at the root (``//healthz``).
        ``stream`` leaves the body to the caller's ``chunks()``, which may also get a status of 307 and a ``Location``;
        without it ``json()`` is expected or nothing.
        ``timeout`` and ``patience`` are seconds, by default the transport's. Errors as in the module's table.
        """
        url = self.server + (path[1:] if path.startswith("//") else API + path)
        headers = dict(headers or {})
        if json is not None:
            headers["Content-Type"] = "application/json"
            data = json_format.dumps(json, separators=(",", ":")).encode("ascii")
        repeatable = method in _IDEMPOTENT or IDEMPOTENCY_KEY in headers
        limit_s = (self.patience_s if self.met else 0.0) if patience is None else patience
        started, pause, breaks = time.monotonic(), _FIRST_PAUSE_S, 0
        while True:
            safe, wait_s, shown = repeatable, 0.0, self._token
            try:
                raw = self._send(method, url, params=params, data=data, headers=headers, timeout=timeout)
                self.met = True
                if raw.status_code == 401 and self._has_another(shown):
                    raw.close()
                    continue
                if raw.status_code not in _COME_BACK:
                    return self._answer(raw, url, stream=stream)
                safe = repeatable or raw.status_code in _NOTHING_DONE
                wait_s = _retry_after(raw)
                error = _failure(raw, url)
            except _Unreached as unreached:
                safe, error = True, Unavailable(unreached.message)
            except _Broken as broken:
                breaks += 1
                error = Unavailable(broken.message, code="broken")
            left_s = started + limit_s - time.monotonic()
            if not safe or breaks >= MAX_BREAKS or left_s <= 0 or self._closed.is_set():
                raise error
            logger.debug("request will be repeated", extra={"method": method, "path": path, "reason": str(error)})
            pause_s = max(wait_s, pause * random.uniform(0.5, 1.0))
            self.pause(min(pause_s, left_s))
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    def elsewhere(
        self, method: str, url: str, *, data: Body | None = None, headers: Mapping[str, str] = {}
    ) -> Response:  # fmt: skip
        """Send one request to an address of the server's blob store, without the token; the answer of status 2xx.

        Unavailable (``code`` broken) when that fails in any way: ask the server again. InputError when the address is
        none, or leads from TLS to plain HTTP.
        """
        import requests

        try:
            base = server_url(url.partition("?")[0])
        except InputError:
            base = ""
        if not base or (base.startswith("http:") and self.server.startswith("https:")):
            raise InputError(f"{self.server} names an address for blobs that is not safe to use", field="server")
        with self._lock:
            if self._stranger_session is None:
                self._stranger_session = self._open(base, None)
            session = self._stranger_session
        place = urlsplit(base).netloc
        try:
            raw = session.request(
                method, url, data=data() if callable(data) else data, headers=dict(headers), stream=True,
                timeout=(min(self.timeout_s, 10.0), self.timeout_s), allow_redirects=False,
            )  # fmt: skip
        except (requests.RequestException, OSError, ValueError) as error:
            raise Unavailable(f"the blob store at {place} fails: {_cause(error)}", code="broken") from None
        if not 200 <= raw.status_code < 300:
            raw.close()
            raise Unavailable(f"the blob store at {place} answers {raw.status_code}", code="broken")
        return Response(raw, place, None)

    def _answer(self, raw: requests.Response, url: str, *, stream: bool) -> Response:
        if 200 <= raw.status_code < 300 or (stream and raw.status_code == 307):
            return Response(raw, url, None if stream else _read(raw, url))
        if 300 <= raw.status_code < 400:
            where = printable(raw.headers.get("Location", "nowhere"), 200)
            raw.close()
            raise InputError(
                f"{self.server} redirects to {where}; give the server's own address with --server", code="not_kolejka"
            )
        error = _failure(raw, url)
        raise self._stranger() if raw.status_code == 401 and error.code != "not_kolejka" else error

    def _has_another(self, shown: str | None) -> bool:
        """Whether there is another token by now than the one that was ``shown``: one that was put in its place."""
        try:
            found = self._look_again()
            _check_token(found, self._token_source)
        except InputError:  # the file is being written, or gone
            return False
        with self._lock:
            if found is not None and self._token == shown != found:
                self._token = found
                if self._session is not None:
                    self._session.headers["Authorization"] = f"Bearer {found}"
            return self._token != shown

    def _stranger(self) -> NotAllowed:
        """The server does not know the token: which token, and what gives a better one."""
        if self._token is None:
            return NotAllowed(f"no token for {self.server}; {self.cure}", code="unauthorized")
        whose = f"the token from {self._token_source}" if self._token_source else "this token"
        return NotAllowed(f"{self.server} does not accept {whose}; {self.cure}", code="unauthorized")

    def _send(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, Any] | None,
        data: Body | None,
        headers: Mapping[str, str],
        timeout: float | None,
    ) -> requests.Response:
        session = self._opened()
        import requests

        timeout_s = self.timeout_s if timeout is None else timeout
        try:
            return session.request(
                method, url, params=params, data=data() if callable(data) else data, headers=dict(headers),
                stream=True, timeout=(min(timeout_s, 10.0), timeout_s), allow_redirects=False,
            )  # fmt: skip
        except requests.ConnectTimeout:
            raise _Unreached(self._nobody("it does not answer")) from None
        except requests.exceptions.SSLError as error:
            self._explain_tls(error)
        except requests.exceptions.ProxyError as error:
            raise _Unreached(self._nobody(f"the proxy fails: {_cause(error)}")) from None
        except requests.ConnectionError as error:
            if _never_connected(error):
                raise _Unreached(self._nobody(_cause(error))) from None
            raise _Broken(f"the connection to {self.server} broke: {_cause(error)}") from None
        except requests.Timeout:
            raise _Broken(f"{self.server} did not answer within {timeout_s:g} s") from None
        except (requests.exceptions.ChunkedEncodingError, OSError) as error:
            raise _Broken(f"the connection to {self.server} broke: {_cause(error)}") from None
        except ValueError as error:  # it redirects to what is no address
            logger.debug("answer not understood", exc_info=error)
            _not_kolejka(url, "its answer is not what was asked for")

    def _nobody(self, reason: str) -> str:
        cure = "start one with `kolejka up`, or name another with --server"
        return f"no server at {self.server} ({reason}); {cure}"

    def _explain_tls(self, error: Exception) -> NoReturn:
        text = _cause(error)
        if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
            raise InputError(
                f"the certificate of {self.server} is not trusted ({text}); name its authority's file with --ca",
                field="server",
            ) from None
        if "WRONG_VERSION_NUMBER" in text or "wrong version number" in text:
            raise InputError(f"{self.server} does not speak TLS; write http:// instead", field="server") from None
        raise _Broken(f"the connection to {self.server} broke: {text}") from None

    def _opened(self) -> requests.Session:
        with self._lock:
            if self._session is None:
                self._session = self._open(self.server, self._token)
            return self._session

    def _open(self, server: str, token: str | None) -> requests.Session:
        import http.cookiejar

        import requests
        from requests.adapters import HTTPAdapter
        from requests.utils import get_environ_proxies

        session = requests.Session()
        session.trust_env = False  # no .netrc, and no look at the whole environment with every request
        if not is_loopback(server):
            session.proxies.update(get_environ_proxies(server))
        session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        session.headers.update({"User-Agent": f"kolejka/{__version__}", "Accept-Encoding": "identity"})
        if token is not None:
            session.headers["Authorization"] = f"Bearer {token}"
        if server.startswith("https://"):
            session.mount("https://", _tls_adapter(self._ca))
        else:
            session.mount("http://", HTTPAdapter(pool_maxsize=64))
        return session


def _check_token(token: str | None, source: str) -> None:
    if token is not None and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise InputError("a token is one word of ASCII letters; copy it whole", field=source)


class _Unreached(Exception):
    """The request got to nobody."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class _Broken(Exception):
    """The request may have been heard; the answer was not."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def _tls_adapter(ca: str) -> Any:
    from requests.adapters import HTTPAdapter

    context = ssl.create_default_context()
    if ca:
        try:
            context.load_verify_locations(cafile=ca)
        except (OSError, ssl.SSLError) as error:
            reason = error.strerror if isinstance(error, FileNotFoundError) else "it holds no certificates"
            raise InputError(f"{ca} cannot be used: {reason}", field="ca") from None

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **words: Any) -> None:
            super().init_poolmanager(*args, **{**words, "ssl_context": context})

    return Adapter(pool_maxsize=64)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and all that it wraps: urllib3 and requests put the true reason deep inside."""
    seen: set[int] = set()
    todo = [error]
    while todo:
        one = todo.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        todo += [a for a in (*one.args, getattr(one, "reason", None)) if isinstance(a, BaseException)]
        todo += [one.__cause__, one.__context__]


def _never_connected(error: BaseException) -> bool:
    from urllib3.exceptions import NewConnectionError

    return any(isinstance(e, NewConnectionError) for e in _chain(error))


def _cause(error: BaseException) -> str:
    """The innermost reason in words, without addresses of objects and pools."""
    reasons = [e for e in _chain(error) if isinstance(e, OSError) and e.strerror and not hasattr(e, "request")]
    if reasons:
        return printable(reasons[-1].strerror, 200)
    innermost = list(_chain(error))[-1]
    return printable(str(innermost) or type(innermost).__name__, 200)


def _retry_after(raw: requests.Response) -> float:
    """Seconds the server asks for before the next try, within reason."""
    text = raw.headers.get("Retry-After", "")
    return min(float(text), 60.0) if re.fullmatch(r"[0-9]{1,6}", text) else 0.0


def _read(raw: requests.Response, url: str) -> bytes:
    """The whole body of an answer, which must be of sane size."""
    import requests

    parts: list[bytes] = []
    size = 0
    try:
        for chunk in raw.iter_content(CHUNK):
            parts.append(chunk)
            size += len(chunk)
            if size > MAX_ANSWER:
                _not_kolejka(url, "its answer has no end")
    except (requests.RequestException, OSError) as error:
        raise _Broken(f"{url} broke off in the middle: {_cause(error)}") from None
    finally:
        raw.close()
    return b"".join(parts)


_KINDS: Final[Mapping[int, tuple[type[InputError], str]]] = {
    401: (NotAllowed, "unauthorized"), 403: (NotAllowed, "forbidden"), 404: (NotFound, "not_found"),
    409: (Conflict, "conflict"),
}  # fmt: skip
"""status → the error that it is, and its usual code"""


def _failure(raw: requests.Response, url: str) -> KolejkaError:
    """The error that an answer of status 4xx or 5xx is."""
    status = raw.status_code
    try:
        body = _read(raw, url)
    except InputError:
        body = b""
    message, field, code = _words(body)
    if status >= 500 or status == 429:
        return Unavailable(f"{_base(url)} cannot answer now: {message or f'HTTP status {status}'}", code=code)
    if not message and raw.request.method != "HEAD":
        return InputError(
            f"{_base(url)} is no Kolejka server (it answers {status} in other words); name the right one with --server",
            code="not_kolejka",
        )
    kind, usual = _KINDS.get(status, (InputError, "invalid"))
    return kind(message or f"HTTP status {status}", field=field, code=code or usual)


def told_error(data: Mapping[str, Any]) -> InputError:
    """The error that one part of an answer is, where each part is answered by itself."""
    message, field, code = _words_of(data)
    kinds = {usual: kind for kind, usual in _KINDS.values()}
    return kinds.get(code or "", InputError)(message, field=field, code=code or "invalid")


def _words(body: bytes) -> tuple[str, str | None, str | None]:
    """Message, field and code of an error's body; an empty message when the body is not Kolejka's."""
    try:
        return _words_of(json_format.loads(body)["error"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "", None, None


def _words_of(error: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
    message, field, code = error["message"], error.get("field"), error.get("code")
    return (
        printable(message) or "no reason given",
        printable(field, 300) if field else None,
        printable(code, 60) if code else None,
    )


def _base(url: str) -> str:
    return url.partition(API)[0]


def _not_kolejka(url: str, reason: str) -> NoReturn:
    raise InputError(
        f"{_base(url)} is no Kolejka server ({reason}); name the right one with --server", code="not_kolejka"
    )


def quoted(word: str) -> str:
    """A foreign word (a task's id, a node's name) as one step of a path."""
    if not word or word in {".", ".."}:
        raise InputError(f"{word!r} names nothing")
    return quote(word, safe="")
