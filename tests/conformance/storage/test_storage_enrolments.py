"""Machines that ask to be let in: what becomes of them, whatever they do, on every engine."""

from __future__ import annotations

import pytest

from kolejka.common.enrolment import digest, new_secret
from kolejka.common.errors import Conflict, NotAllowed, NotFound
from kolejka.server.auth import tokens
from kolejka.server.auth.roles import Role
from kolejka.server.auth.tokens import Caller
from kolejka.server.storage import enrolments, users
from kolejka.server.storage.base import AccessChanged, Announcement
from kolejka.server.storage.enrolments import Enrolment
from tests.conformance.storage.conftest import Cluster

A, B, C = (digest(f"secret {letter}") for letter in "abc")


def ask(cluster: Cluster, hashed: str, name: str = "lathe", most: int = 10) -> bool:
    return cluster.store.write(lambda db: enrolments.ask(db, hashed, name, cluster.wall, most=most)).result()


def listing(cluster: Cluster) -> list[Enrolment]:
    return cluster.store.read(enrolments.listing).result()


def approve(cluster: Cluster, name: str = "lathe", shown: str | None = None) -> Enrolment:
    heard_since = cluster.wall - cluster.rules.heartbeat_s
    return cluster.store.write(
        lambda db: enrolments.approve(db, name, shown, heard_since=heard_since, now=cluster.wall)
    ).result()


def refuse(cluster: Cluster, name: str = "lathe", shown: str | None = None, most: int = 10) -> list[Enrolment]:
    return cluster.store.write(lambda db: enrolments.refuse(db, name, shown, most=most)).result()


def fetch(cluster: Cluster, hashed: str) -> str | None:
    """The token, ``None`` while it waits."""
    token = tokens.new_token()
    found = cluster.store.write(lambda db: enrolments.fetch(db, hashed, tokens.digest(token), cluster.wall)).result()
    return token if found.token_id is not None else None


def bearer(cluster: Cluster, token: str | None) -> tuple[str, str] | None:
    """User and role of a token's bearer."""
    assert token is not None
    found = cluster.store.read(lambda db: users.find_token(db, tokens.digest(token))).result()
    return None if found is None else (found.user, found.role)


def test_a_machine_waits_until_it_is_approved_and_gets_a_token_of_its_own(
    cluster: Cluster, announced: list[Announcement]
) -> None:
    assert ask(cluster, A)
    assert [(one.name, one.state) for one in listing(cluster)] == [("lathe", "waiting")]
    assert fetch(cluster, A) is None
    assert approve(cluster).hash == A
    token = fetch(cluster, A)
    assert bearer(cluster, token) == ("lathe", "node")
    assert AccessChanged() in announced
    assert listing(cluster) == []
    assert [one["name"] for one in cluster.store.read(users.list_tokens).result()] == [
        f"enrolment {enrolments.fingerprint(A)}"
    ]


def test_asking_again_changes_nothing(cluster: Cluster) -> None:
    ask(cluster, A)
    before = listing(cluster)
    assert ask(cluster, A)
    assert listing(cluster) == before
    approve(cluster)
    ask(cluster, A, "another")  # what was approved is a name, too
    assert fetch(cluster, A) is not None
    with pytest.raises(NotFound):
        cluster.store.read(lambda db: users.find_user(db, "another")).result()


def test_a_secret_that_nobody_asked_with_opens_nothing(cluster: Cluster) -> None:
    with pytest.raises(NotFound):
        fetch(cluster, A)


def test_a_lost_answer_is_told_again_for_a_while_and_the_first_token_ends(cluster: Cluster) -> None:
    ask(cluster, A)
    approve(cluster)
    first = fetch(cluster, A)
    cluster.sleep(enrolments.AGAIN_S - 1)
    second = fetch(cluster, A)
    assert bearer(cluster, first) is None
    assert bearer(cluster, second) == ("lathe", "node")
    cluster.sleep(2)  # counted from the first time: whoever keeps asking does not keep the door open
    with pytest.raises(NotAllowed):
        fetch(cluster, A)
    assert bearer(cluster, second) == ("lathe", "node")


def test_a_revoked_node_does_not_let_itself_in_again(cluster: Cluster) -> None:
    ask(cluster, A)
    approve(cluster)
    fetch(cluster, A)
    (token,) = cluster.store.read(users.list_tokens).result()
    cluster.store.write(lambda db: users.revoke_token(db, token["id"])).result()
    with pytest.raises(NotAllowed, match="revoked"):
        fetch(cluster, A)
    cluster.sleep(enrolments.AGAIN_S + 1)
    ask(cluster, A)
    assert fetch(cluster, A) is None, "an admin has to say it anew"


def test_where_several_ask_under_a_name_only_a_fingerprint_tells_them_apart(cluster: Cluster) -> None:
    ask(cluster, A)
    ask(cluster, B)
    with pytest.raises(Conflict, match="2 machines ask to be 'lathe'"):
        approve(cluster)
    with pytest.raises(NotFound):
        approve(cluster, shown=enrolments.fingerprint(C))
    shown = enrolments.fingerprint(B)
    assert approve(cluster, shown=shown.lower().replace("-", " ")).hash == B
    assert fetch(cluster, A) is None
    assert fetch(cluster, B) is not None


def test_the_name_of_a_node_at_work_takes_the_fingerprint(cluster: Cluster) -> None:
    ask(cluster, A)
    approve(cluster)
    fetch(cluster, A)
    user_id, _ = cluster.store.read(lambda db: users.find_user(db, "lathe")).result()
    cluster.claim(Caller(user_id, "lathe", Role.NODE, 0), "lathe")
    ask(cluster, B)
    with pytest.raises(Conflict, match="is at work"):
        approve(cluster)
    cluster.sleep(cluster.rules.heartbeat_s + 1)  # it is silent: as well the same machine without its disk
    assert approve(cluster).hash == B


def test_a_machine_that_comes_back_without_its_disk_replaces_its_old_token(cluster: Cluster) -> None:
    ask(cluster, A)
    approve(cluster)
    old = fetch(cluster, A)
    ask(cluster, B)
    approve(cluster)
    new = fetch(cluster, B)
    assert bearer(cluster, old) is None
    assert bearer(cluster, new) == ("lathe", "node")


def test_a_name_that_is_somebody_elses_is_given_to_no_machine(cluster: Cluster, ala: Caller, smith: Caller) -> None:
    ask(cluster, A, ala.user)
    with pytest.raises(Conflict, match="no node"):
        approve(cluster, ala.user)
    cluster.claim(smith, "anvil")
    ask(cluster, B, "anvil")
    with pytest.raises(Conflict, match="belongs to the user 'smith'"):
        approve(cluster, "anvil", enrolments.fingerprint(B))
    assert {one.state for one in listing(cluster)} == {"waiting"}


def test_a_refused_machine_is_told_so_until_an_admin_thinks_better_of_it(cluster: Cluster) -> None:
    ask(cluster, A)
    assert [one.hash for one in refuse(cluster)] == [A]
    with pytest.raises(NotAllowed):
        fetch(cluster, A)
    ask(cluster, A)
    with pytest.raises(NotAllowed):
        fetch(cluster, A)
    with pytest.raises(NotFound):
        approve(cluster)
    with pytest.raises(NotFound):
        refuse(cluster)
    assert approve(cluster, shown=enrolments.fingerprint(A)).hash == A
    assert fetch(cluster, A) is not None


def test_a_flood_is_bounded_and_ends_by_itself(cluster: Cluster) -> None:
    flood = [digest(new_secret()) for _ in range(5)]
    assert [ask(cluster, one, f"n{number}", most=4) for number, one in enumerate(flood)] == [True] * 4 + [False]
    assert len(listing(cluster)) == 4
    assert ask(cluster, flood[0], "n0", most=4), "who waits already asks on"
    cluster.sleep(enrolments.QUIET_S + 1)
    fetch(cluster, flood[1])  # is heard still
    assert ask(cluster, flood[4], "n4", most=4), "those who went make room"
    assert {one.hash for one in listing(cluster)} == {flood[1], flood[4]}
    cluster.sleep(enrolments.KEEP_S + 1)
    ask(cluster, A)
    assert [one.hash for one in listing(cluster)] == [A]


def test_all_who_ask_under_a_name_are_refused_at_once_and_few_are_remembered(cluster: Cluster) -> None:
    for number in range(6):
        ask(cluster, digest(f"flood {number}"))
        cluster.sleep(1)
    assert len(refuse(cluster, most=2)) == 6
    assert {one.hash for one in listing(cluster)} == {digest("flood 4"), digest("flood 5")}
    ask(cluster, A)
    ask(cluster, B)
    assert [one.hash for one in refuse(cluster, shown=enrolments.fingerprint(B))] == [B]
    assert fetch(cluster, A) is None
