"""Every way in which a conversation with a server can end has its error, and none shows the token."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from kolejka.client.transport import IDEMPOTENCY_KEY, Transport, is_loopback, printable, server_url
from kolejka.common.errors import Conflict, InputError, KolejkaError, NotAllowed, NotFound, Unavailable
from tests.support import wait_until
from tests.unit.client_stub import TOKEN, Handler, Stub, cut_body, hang_up, serving, status


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serving(Stub()) as served:
        yield served


@pytest.fixture
def transport(stub: Stub) -> Iterator[Transport]:
    opened = Transport(stub.url, TOKEN, patience_s=20.0, timeout_s=10.0)
    yield opened
    opened.close()


EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def wrong(code: str = "x", message: str = "what is wrong", field: str | None = None) -> dict[str, object]:
    return {"error": {"code": code, "message": message, "field": field}}


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, InputError), (401, NotAllowed), (403, NotAllowed), (404, NotFound), (409, Conflict), (413, InputError),
        (418, InputError), (422, InputError), (429, Unavailable), (500, Unavailable), (503, Unavailable),
    ],
)  # fmt: skip
def test_every_status_has_its_error(stub: Stub, transport: Transport, code: int, kind: type[KolejkaError]) -> None:
    stub.fault("POST", "/tasks", status(code, wrong(field="limits.time")), times=100)
    with pytest.raises(kind) as caught:
        transport.request("POST", "/tasks", json={}, patience=0)
    assert type(caught.value) is kind
    assert "what is wrong" in str(caught.value) or code == 401
    assert caught.value.field == (None if code in {401, 429, 500, 503} else "limits.time")


def test_the_servers_own_code_is_kept(stub: Stub, transport: Transport) -> None:
    stub.fault("POST", "/tasks", status(422, wrong("blob_missing", field="files.a")))
    with pytest.raises(InputError) as caught:
        transport.request("POST", "/tasks", json={})
    assert caught.value.code == "blob_missing"


def test_a_server_that_was_never_there_fails_at_once_and_names_address_and_cure() -> None:
    transport = Transport(f"http://127.0.0.1:{free_port()}", TOKEN, patience_s=600.0)
    transport.pause = lambda seconds: pytest.fail("it waits")  # type: ignore[method-assign]
    with pytest.raises(Unavailable) as caught:
        transport.request("GET", "/whoami")
    assert transport.server in str(caught.value)
    assert "kolejka up" in str(caught.value)
    assert "--server" in str(caught.value)
    assert "0x" not in str(caught.value), "no addresses of objects"


def test_a_server_that_comes_up_within_an_asked_patience_is_found() -> None:
    stub, port, tried = Stub(), free_port(), threading.Event()
    transport = Transport(f"http://127.0.0.1:{port}", TOKEN)
    transport.pause = lambda seconds: tried.set() or threading.Event().wait(0.01)  # type: ignore[method-assign]
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(transport.request("GET", "/whoami", patience=30.0).json()))
    thread.start()
    assert tried.wait(30), "the first try failed"
    with serving(stub, port):
        thread.join(30)
    assert answers == [{"user": "ann", "role": "client", "token": "t1"}]


def test_a_server_that_answered_before_is_waited_for_through_a_restart() -> None:
    stub, port, tried = Stub(), free_port(), threading.Event()
    transport = Transport(f"http://127.0.0.1:{port}", TOKEN, patience_s=30.0)
    with serving(stub, port):
        transport.request("GET", "/whoami")
    transport.pause = lambda seconds: tried.set() or threading.Event().wait(0.01)  # type: ignore[method-assign]
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(transport.request("GET", "/queues").json()))
    thread.start()
    assert tried.wait(30)
    with serving(stub, port):
        thread.join(30)
    assert answers == [[{"name": "default", "state": "open"}]]


@pytest.mark.parametrize("act", [status(503, wrong()), status(502, b"<html>"), hang_up, cut_body(b'{"user":1}', 4)])
def test_what_may_be_repeated_is_repeated(stub: Stub, transport: Transport, act: Callable[[Handler], None]) -> None:
    transport.request("GET", "/whoami")
    stub.fault("GET", "/whoami", act, times=2)
    assert transport.request("GET", "/whoami").json()["user"] == "ann"
    assert stub.count("GET", "/whoami") == 4


def test_a_post_without_a_key_is_not_repeated_after_it_may_have_been_heard(stub: Stub, transport: Transport) -> None:
    transport.request("GET", "/whoami")
    stub.fault("POST", "/claims", hang_up, times=5)
    with pytest.raises(Unavailable):
        transport.request("POST", "/claims", json={})
    assert stub.count("POST", "/claims") == 1


def test_a_post_with_a_key_is_repeated_with_the_same_key(stub: Stub, transport: Transport) -> None:
    transport.request("GET", "/whoami")
    stub.fault("POST", "/tasks", hang_up)
    transport.request("POST", "/tasks", json={"args": ["x"]}, headers={IDEMPOTENCY_KEY: "k1"})
    posts = [asked for asked in stub.asked if asked.method == "POST"]
    assert [asked.headers[IDEMPOTENCY_KEY] for asked in posts] == ["k1", "k1"]
    assert len(stub.tasks) == 1


def test_pauses_between_tries_grow_and_respect_what_the_server_asks(stub: Stub, transport: Transport) -> None:
    pauses: list[float] = []
    transport.pause = pauses.append  # type: ignore[method-assign]
    transport.request("GET", "/whoami")
    stub.fault("GET", "/whoami", status(503, wrong()), times=6)
    stub.fault("GET", "/whoami", status(503, wrong(), {"Retry-After": "7"}))
    transport.request("GET", "/whoami")
    assert pauses[5] > pauses[0] * 8
    assert pauses[6] == 7


def test_a_server_that_keeps_hanging_up_on_a_request_is_not_asked_for_ever(stub: Stub, transport: Transport) -> None:
    transport.pause = lambda seconds: None  # type: ignore[method-assign]
    transport.request("GET", "/whoami")
    stub.fault("PUT", "/blobs/.*", hang_up, times=1000)
    with pytest.raises(Unavailable, match="broke"):
        transport.request("PUT", "/blobs/aa", data=b"x")
    assert stub.count("PUT", "/blobs/aa") == 5


def test_a_body_that_is_made_anew_is_sent_whole_with_every_try(stub: Stub, transport: Transport) -> None:
    class Body:
        def __len__(self) -> int:
            return 6

        def __iter__(self) -> Iterator[bytes]:
            return iter([b"abc", b"def"])

    transport.request("GET", "/whoami")
    sha = "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721"
    stub.fault("PUT", "/blobs/.*", status(503, wrong()))
    transport.request("PUT", f"/blobs/{sha}", data=Body)
    puts = [asked for asked in stub.asked if asked.method == "PUT"]
    assert [asked.body for asked in puts] == [b"abcdef", b"abcdef"]
    assert "Transfer-Encoding" not in puts[0].headers


def test_a_wrong_token_names_login_and_where_the_token_came_from(stub: Stub) -> None:
    transport = Transport(stub.url, "klj_wrong", token_source="/home/ann/token")
    with pytest.raises(NotAllowed) as caught:
        transport.request("GET", "/whoami")
    assert "/home/ann/token" in str(caught.value)
    assert f"kolejka login --server {stub.url}" in str(caught.value)
    assert "klj_wrong" not in str(caught.value)


def test_no_token_names_login(stub: Stub) -> None:
    with pytest.raises(NotAllowed, match=r"no token .*kolejka login"):
        Transport(stub.url).request("GET", "/whoami")


@pytest.mark.parametrize(
    "act",
    [
        status(404, b"<html>not here</html>"), status(200, b"<html>hello</html>"), status(200, b"\xff\xfe"),
        status(200, b"[" * 100_000), status(403, b'{"error": "no"}'), status(200, b"[]"),
    ],
)  # fmt: skip
def test_what_is_no_kolejka_server_is_told_so_in_one_line(
    stub: Stub, transport: Transport, act: Callable[[Handler], None]
) -> None:
    stub.fault("GET", "/whoami", act)
    with pytest.raises(InputError, match="is no Kolejka server") as caught:
        transport.request("GET", "/whoami").object()
    assert "\n" not in str(caught.value)
    assert "--server" in str(caught.value)


def test_a_redirect_is_not_followed_and_named(stub: Stub, transport: Transport) -> None:
    stub.fault("GET", "/whoami", status(301, b"", {"Location": "https://elsewhere.example/"}))
    with pytest.raises(InputError, match=r"redirects to https://elsewhere\.example/") as caught:
        transport.request("GET", "/whoami")
    assert caught.value.code == "not_kolejka", "whoever redirects has said nothing about what was asked"
    assert len(stub.asked) == 1


def test_a_redirect_to_no_address_is_no_answer_of_a_server(stub: Stub, transport: Transport) -> None:
    stub.fault("GET", "/whoami", status(302, b"", {"Location": "http://[::1"}))
    with pytest.raises(InputError, match="is no Kolejka server"):
        transport.request("GET", "/whoami")


def test_a_hostile_servers_words_carry_no_control_characters(stub: Stub, transport: Transport) -> None:
    stub.fault("GET", "/whoami", status(422, wrong(message="a\x1b[2Jb\r\nc\u202ed" + "x" * 9000)))
    with pytest.raises(InputError) as caught:
        transport.request("GET", "/whoami")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 1000


def test_an_answer_without_end_is_not_read_to_its_end(
    stub: Stub, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kolejka.client.transport.MAX_ANSWER", 1000)
    stub.fault("GET", "/whoami", status(200, b" " * 3_000_000))
    with pytest.raises(InputError, match="no end"):
        transport.request("GET", "/whoami")


def test_the_token_stands_in_no_log_line_and_no_representation(
    stub: Stub, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    transport.request("GET", "/whoami")
    stub.fault("GET", "/whoami", hang_up)
    transport.request("GET", "/whoami")
    assert TOKEN not in caplog.text + "".join(str(vars(record)) for record in caplog.records) + repr(transport)


def test_the_netrc_file_and_cookies_play_no_part(
    stub: Stub, transport: Transport, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = f"{tmp_path}/netrc"
    with open(netrc, "w") as file:
        file.write("machine 127.0.0.1 login ann password secret\n")
    monkeypatch.setenv("NETRC", netrc)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    stub.fault("GET", "/queues", status(200, [], {"Set-Cookie": "a=b"}))
    transport.request("GET", "/queues")
    transport.request("GET", "/whoami")
    assert stub.asked[-1].headers["Authorization"] == f"Bearer {TOKEN}"
    assert "Cookie" not in stub.asked[-1].headers


def test_the_connection_is_kept_between_requests(stub: Stub, transport: Transport) -> None:
    ports: set[int] = set()
    real = Handler.route

    def route(self: Handler, asked: object) -> None:
        ports.add(self.client_address[1])
        real(self, asked)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handler, "route", route)
        for _ in range(5):
            transport.request("GET", "/whoami")
        transport.request("PUT", f"/blobs/{EMPTY}", data=b"")
        transport.request("HEAD", f"/blobs/{EMPTY}")
        for method in ("HEAD", "GET"):
            with pytest.raises(NotFound):
                transport.request(method, "/blobs/" + "0" * 64)
        assert b"".join(transport.request("GET", f"/blobs/{EMPTY}", stream=True).chunks()) == b""
        transport.request("GET", "/whoami")
    assert len(ports) == 1


def test_closing_ends_the_pause_of_a_waiting_request(stub: Stub, transport: Transport) -> None:
    transport.request("GET", "/whoami")
    stub.fault("GET", "/whoami", status(503, wrong(), {"Retry-After": "60"}), times=1000)
    ends: list[object] = []

    def ask() -> None:
        try:
            transport.request("GET", "/whoami", patience=60.0)
        except KolejkaError as error:
            ends.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: stub.count("GET", "/whoami") >= 2)
    transport.close()
    thread.join(30)
    assert len(ends) == 1


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://Example.ORG:80/", "http://example.org"),
        ("https://example.org:443", "https://example.org"),
        ("HTTP://127.0.0.1:8642", "http://127.0.0.1:8642"),
        ("http://[::1]:8642/", "http://[::1]:8642"),
        ("https://example.org/kolejka/", "https://example.org/kolejka"),
    ],
)
def test_an_address_has_one_spelling(text: str, url: str) -> None:
    assert server_url(text) == url


@pytest.mark.parametrize(
    "text",
    ["", "localhost:8642", "ftp://example.org", "http://", "http://x:notaport", "http://ann:pw@example.org",
     "http://example.org/?a=b", "http://[::1", "http://x:99999", "http://127.0.0.1 :8642", "http://a\\b"],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_the_cure(text: str) -> None:
    with pytest.raises(InputError) as caught:
        server_url(text)
    assert caught.value.field == "server"
    assert "pw" not in str(caught.value)


def test_loopback_is_known() -> None:
    assert all(map(is_loopback, ["http://localhost:1", "http://127.0.0.1", "http://127.9.9.9", "http://[::1]:1"]))
    assert not any(map(is_loopback, ["http://example.org", "http://10.0.0.1", "http://localhost.evil.example"]))


@pytest.mark.parametrize("token", ["two words", "line\n", "żółw", ""])
def test_a_token_that_cannot_stand_in_a_header_is_refused_without_being_shown(token: str) -> None:
    with pytest.raises(InputError) as caught:
        Transport("http://127.0.0.1:1", token)
    assert not token or token not in str(caught.value)


def test_printable_keeps_ordinary_words() -> None:
    assert printable("zażółć gęślą jaźń") == "zażółć gęślą jaźń"
    assert printable("a\x00\x1b\x7f\x9bb") == "a b"


def test_asking_for_help_imports_neither_requests_nor_rich() -> None:
    code = (
        "import sys; from kolejka.client.cli.main import command;"
        "command.main(['--help'], 'k', standalone_mode=False);"
        "import json; print(json.dumps(sorted({'requests','rich','urllib3','jsonschema'} & set(sys.modules))))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out.splitlines()[-1]) == []
