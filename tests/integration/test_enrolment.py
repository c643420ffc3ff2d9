"""A machine without a token and a server: the calls of strangers, an admin's commands, a foreman that is let in."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kolejka.client.client import KolejkaClient
from kolejka.client.enrolment import Door
from kolejka.client.node import NodeClient
from kolejka.common.enrolment import digest, fingerprint, new_secret
from kolejka.common.errors import NotAllowed
from kolejka.common.settings import ClientSettings, ForemanSettings
from kolejka.foreman import enrol
from kolejka.server.app import ROUTES
from tests.integration.server_process import Caller, Reply, Server
from tests.support import wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), "--enrolments", "5").start()
    yield server
    assert server.stop() == 0
    assert "Traceback" not in server.log()
    assert not {"klj_", "kle_"} & {word[:4] for word in server.log().replace("=", " ").split()}


@pytest.fixture
def admin(server: Server) -> Iterator[Caller]:
    yield server.admin
    for one in server.admin.ask("GET", "/enrolments").json:
        if one["state"] != "refused":
            server.admin.ask("POST", f"/enrolments/{one['name']}/refuse", {}, status=200)


@pytest.fixture
def stranger(server: Server) -> Caller:
    return Caller(server, "")


def words(secret: str, name: str = "lathe") -> dict[str, str]:
    return {"name": name, "hash": digest(secret)}


def test_a_stranger_asks_an_admin_approves_and_the_token_works(admin: Caller, stranger: Caller) -> None:
    secret = new_secret()
    said = stranger.ask("POST", "/enrolments", words(secret), status=202).json
    assert said == {"fingerprint": fingerprint(digest(secret))}
    assert stranger.ask("POST", "/enrolments/token", {"secret": secret}, status=202).json == {}
    (waiting,) = [one for one in admin.ask("GET", "/enrolments").json if one["state"] == "waiting"]
    assert (waiting["name"], waiting["fingerprint"]) == ("lathe", said["fingerprint"])
    assert admin.ask("POST", "/enrolments/lathe/approve", {}, status=200).json["state"] == "approved"
    told = stranger.ask("POST", "/enrolments/token", {"secret": secret}, status=200)
    assert told.headers["cache-control"] == "no-store"
    node = Caller(stranger.server, told.json["token"])
    assert node.ask("GET", "/whoami", status=200).json["role"] == "node"
    acts = [(act["act"], act["user"]) for act in admin.ask("GET", "/audit?limit=2").json["acts"]]
    assert acts == [("node.enrol", "lathe"), ("node.approve", "admin")]
    assert secret not in json.dumps(admin.ask("GET", "/audit").json)
    assert digest(secret) not in json.dumps(admin.ask("GET", "/enrolments").json)
    token_id = node.ask("GET", "/whoami").json["token"]
    admin.ask("DELETE", f"/tokens/{token_id}", status=204)
    assert node.ask("GET", "/whoami").status == 401
    assert stranger.ask("POST", "/enrolments/token", {"secret": secret}).error == ("forbidden", None)


def test_the_door_says_nothing_that_the_caller_did_not_bring(admin: Caller, stranger: Caller) -> None:
    known, unknown = new_secret(), new_secret()
    admin.ask("POST", "/users", {"name": "taken", "role": "node"}, status=201)
    answers = [
        stranger.ask("POST", "/enrolments", words(secret, name), status=202)
        for secret, name in ((known, "taken"), (known, "taken"), (unknown, "nobody-has-it"))
    ]
    assert [set(answer.json) for answer in answers] == [{"fingerprint"}] * 3
    for one in ("taken", "nobody-has-it"):
        admin.ask("POST", f"/enrolments/{one}/refuse", {}, status=200)
    assert stranger.ask("POST", "/enrolments", words(known, "taken"), status=202).json == answers[0].json


def test_a_machine_that_waits_may_do_nothing_else(admin: Caller, stranger: Caller) -> None:
    secret = new_secret()
    stranger.ask("POST", "/enrolments", words(secret), status=202)
    names = {"task_id": "none", "lease": "1", "sha256": "0" * 64, "name": "lathe", "token_id": "1", "number": "1"}
    for shown in (secret, digest(secret), fingerprint(digest(secret))):
        caller = Caller(stranger.server, shown)
        for route in ROUTES:
            if route.roles is not None:
                assert caller.ask(route.method, route.path.format(**names), {}).status == 401, route.path


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/enrolments", {"name": "lathe"}, "hash"), ("/enrolments", {"name": "a/b", "hash": "0" * 64}, "name"),
        ("/enrolments", {"name": "", "hash": "0" * 64}, "name"), ("/enrolments", {"name": "a", "hash": "0"}, "hash"),
        ("/enrolments", {"name": "a", "hash": "0" * 64, "role": "admin"}, "role"),
        ("/enrolments/token", {"secret": "guess"}, "secret"), ("/enrolments/token", {}, "secret"),
    ],
)  # fmt: skip
def test_what_strangers_say_wrongly_is_named_and_nothing_is_kept(
    admin: Caller, stranger: Caller, path: str, body: dict[str, str], field: str
) -> None:
    before = admin.ask("GET", "/enrolments").json
    assert stranger.ask("POST", path, body, status=422).error == ("invalid", field)
    assert admin.ask("GET", "/enrolments").json == before


def test_strangers_say_little(stranger: Caller) -> None:
    body = json.dumps({"name": "lathe", "hash": "0" * 64, "more": "x" * 5000})
    assert stranger.ask("POST", "/enrolments", data=body, status=413).error[0] == "too_large"


def test_only_so_many_wait_and_a_name_with_several_takes_the_fingerprint(admin: Caller, stranger: Caller) -> None:
    secrets = [new_secret() for _ in range(6)]
    statuses = [stranger.ask("POST", "/enrolments", words(secret)).status for secret in secrets]
    assert statuses == [202] * 5 + [429]
    refused = admin.ask("POST", "/enrolments/lathe/approve", {}, status=409)
    assert refused.error == ("conflict", "fingerprint")
    shown = fingerprint(digest(secrets[3]))
    admin.ask("POST", "/enrolments/lathe/approve", {"fingerprint": shown}, status=200)
    assert stranger.ask("POST", "/enrolments/token", {"secret": secrets[3]}).status == 200
    assert stranger.ask("POST", "/enrolments/token", {"secret": secrets[2]}).status == 202
    assert len(admin.ask("POST", "/enrolments/lathe/refuse", {}, status=200).json) == 4
    assert stranger.ask("POST", "/enrolments/token", {"secret": secrets[2]}).error == ("forbidden", None)


def test_an_address_that_asks_without_end_is_slowed_down(tmp_path: Path) -> None:
    server = Server(tmp_path, "--enrolments", "0").start()
    stranger = Caller(server, "")
    assert stranger.ask("POST", "/enrolments", words(new_secret())).error == ("forbidden", None)
    answers: list[Reply] = []
    while len(answers) < 3000 and (not answers or answers[-1].status == 404):  # whatever a slow machine needs
        answers.append(stranger.ask("POST", "/enrolments/token", {"secret": new_secret()}))
    assert answers[-1].status == 429
    assert len(answers) > 90, "nobody who asks now and then is slowed down"
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert server.admin.ask("GET", "/whoami").status == 200, "others are served"
    assert server.stop() == 0


# The foreman's side


class Room:
    """Where a foreman waits: pauses cost no time, and end when ``over`` is set."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.over = threading.Event()

    def tell(self, words: str, shown: str) -> None:
        self.told.append(words)

    def pause(self, seconds: float) -> bool:
        self.over.wait(0.01)
        return not self.over.is_set()


@pytest.fixture
def settings(tmp_path: Path, server: Server) -> tuple[ForemanSettings, ClientSettings]:
    return ForemanSettings(name="mill", data=tmp_path, enrol=True), ClientSettings(server=server.url)


@pytest.fixture
def room(settings: tuple[ForemanSettings, ClientSettings]) -> Iterator[Room]:
    room, door = Room(), Door(settings[1])
    thread = threading.Thread(target=enrol.let_in, args=(settings[0], door, room.pause, room.tell), daemon=True)
    thread.start()
    yield room
    room.over.set()
    thread.join(30)
    door.close()
    assert not thread.is_alive()


def test_a_foreman_is_let_in_and_keeps_its_token_to_itself(
    admin: Caller, settings: tuple[ForemanSettings, ClientSettings], room: Room
) -> None:
    foreman, client = settings
    wait_until(lambda: [one for one in admin.ask("GET", "/enrolments").json if one["name"] == "mill"])
    shown = fingerprint(digest(enrol.secret_of(foreman)))
    assert room.told[0] == (
        f"waiting to be let in: compare the fingerprint {shown}, then run `kolejka node approve mill`"
    )
    with KolejkaClient(ClientSettings(server=client.server, token=admin.token)) as library:
        assert library.approve_node("mill", shown)["state"] == "approved"
    path = enrol.token_file(foreman)
    wait_until(path.exists)
    for kept in (path, foreman.data / "enrolment"):
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    node = NodeClient(enrol.with_token(foreman, client))
    assert node.whoami()["user"] == "mill"
    (token,) = [one for one in admin.ask("GET", "/tokens").json if one["user"] == "mill"]
    admin.ask("DELETE", f"/tokens/{token['id']}", status=204)
    node.transport.cure = enrol.revoked(foreman)
    with pytest.raises(NotAllowed, match=r"does not accept the token from .*; an admin revoked .* remove .*/token"):
        node.whoami()


def test_a_refused_foreman_says_so_and_goes_on_asking(admin: Caller, room: Room) -> None:
    wait_until(lambda: [one for one in admin.ask("GET", "/enrolments").json if one["name"] == "mill"])
    admin.ask("POST", "/enrolments/mill/refuse", {}, status=200)
    wait_until(lambda: room.told[-1] == "not let in: an admin refused to let this machine in")


def test_a_secret_is_made_once(tmp_path: Path) -> None:
    foreman = ForemanSettings(data=tmp_path)
    first = enrol.secret_of(foreman)
    assert enrol.secret_of(foreman) == first
    (tmp_path / "enrolment").write_text("cut sho")
    assert enrol.secret_of(foreman) not in {first, "cut sho"}
