"""Events, callbacks and audit in each engine: written with the act, shared by several servers, lost by none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kolejka.common.errors import NotAllowed
from kolejka.common.limits import Limits
from kolejka.common.result import Outcome
from kolejka.common.task import Task
from kolejka.server import intake
from kolejka.server.auth.roles import Role
from kolejka.server.auth.tokens import Caller
from kolejka.server.calling import Hosts
from kolejka.server.scheduling import claims
from kolejka.server.storage import audit, callbacks, events, moments, nodes, tasks, users
from kolejka.server.storage.base import Connection, Store
from kolejka.server.storage.nodes import NodeWords

NOW = 1_700_000_000.0
URL = "http://example.org/"


def ala(db: Connection) -> Caller:
    user_id = users.add_user(db, "ala", "client", NOW)
    callbacks.set_secret(db, user_id, "kcs_1", NOW)
    callbacks.set_secret(db, user_id, "kcs_2", NOW)
    return Caller(user_id, "ala", Role.CLIENT, 1)


def put(store: Store, caller: Caller, *, url: str | None = URL) -> tasks.Found:
    task = Task.parse({"args": ["x"], **({"callback_url": url} if url else {})})
    considered = intake.consider(task, defaults=Limits(), ceilings=Limits(), hosts=Hosts.parse(["example.org"]))

    def work(db: Connection) -> tasks.Found:
        task_id, _ = intake.put(db, considered, caller, None, NOW)
        found = tasks.find(db, task_id)
        assert found is not None
        return found

    return store.write(work).result()


def cancel(store: Store, found: tasks.Found) -> None:
    store.write(lambda db: claims.cancel(db, found, claims.Moment(NOW + 1, NOW + 1))).result()


def test_a_call_is_owed_from_the_moment_the_task_is_done(store: Store) -> None:
    caller = store.write(ala).result()
    found, other = put(store, caller), put(store, caller, url=None)
    assert store.read(callbacks.next_due).result() is None
    cancel(store, found)
    cancel(store, other)
    assert store.read(callbacks.next_due).result() == NOW + 1
    assert not store.read(lambda db: moments.is_any(db, NOW + 1)).result()
    (due,) = store.write(lambda db: callbacks.take(db, NOW + 2, NOW + 30, 10)).result()
    assert (due.task_id, due.outcome, due.tries, due.secret) == (found.id, Outcome.CANCELLED, 1, "kcs_2")


def test_what_one_server_has_taken_another_does_not_until_its_time_is_over(store: Store) -> None:
    caller = store.write(ala).result()
    for _ in range(20):
        cancel(store, put(store, caller))
    takes = [store.write(lambda db: callbacks.take(db, NOW + 2, NOW + 30, 5)) for _ in range(8)]
    taken = [due.number for take in takes for due in take.result()]
    assert len(taken) == len(set(taken)) == 20
    assert store.write(lambda db: callbacks.take(db, NOW + 29, NOW + 60, 99)).result() == []
    again = store.write(lambda db: callbacks.take(db, NOW + 30, NOW + 60, 99)).result()
    assert {due.number for due in again} == set(taken), "its server died: the next one calls"
    assert {due.tries for due in again} == {2}


def test_calls_of_owners_that_have_many_under_way_are_left(store: Store) -> None:
    caller = store.write(ala).result()
    cancel(store, put(store, caller))
    take = store.write(lambda db: callbacks.take(db, NOW + 2, NOW + 30, 5, without=[caller.user_id, 99]))
    assert take.result() == []
    (due,) = store.write(lambda db: callbacks.take(db, NOW + 2, NOW + 30, 5, without=[99])).result()
    assert due.owner_id == caller.user_id


def test_a_call_is_put_off_or_ended_and_a_late_word_changes_nothing(store: Store) -> None:
    caller = store.write(ala).result()
    found = put(store, caller)
    cancel(store, found)
    (first,) = store.write(lambda db: callbacks.take(db, NOW + 2, NOW + 3, 1)).result()
    (second,) = store.write(lambda db: callbacks.take(db, NOW + 3, NOW + 9, 1)).result()
    store.write(lambda db: callbacks.put_off(db, first, NOW + 99, "late")).result()
    assert store.read(callbacks.next_due).result() == NOW + 9, "a later try is under way"
    store.write(lambda db: callbacks.put_off(db, second, NOW + 20, "answered 500")).result()
    assert store.read(callbacks.next_due).result() == NOW + 20
    store.write(lambda db: callbacks.end(db, second, NOW + 4, "204")).result()
    store.write(lambda db: callbacks.put_off(db, second, NOW + 50, "late")).result()
    shown = store.read(lambda db: callbacks.show(db, found.number)).result()
    assert shown == {"url": URL, "tries": 2, "due_at": None, "ended_at": NOW + 4, "answer": "204"}


def test_each_step_is_written_down_and_old_ones_are_forgotten(store: Store) -> None:
    caller = store.write(ala).result()
    found = put(store, caller, url=None)
    cancel(store, found)
    store.write(lambda db: tasks.delete(db, [found.number], NOW + 5)).result()
    oldest, newest = store.read(events.bounds).result()

    def page(**words: object) -> list[str]:
        query: Callable[[Connection], list[dict[str, object]]] = lambda db: events.page(  # noqa: E731 typed here
            db, above=0, up_to=newest, most=99, **words,  # type: ignore[arg-type]
        )  # fmt: skip
        return [str(row["what"]) for row in store.read(query).result()]

    assert page() == ["waiting", "done", "deleted"]
    assert page(owner_id=caller.user_id, queues={"default"}, task_id=found.id) == ["waiting", "done", "deleted"]
    assert page(owner_id=caller.user_id + 1) == page(queues={"other"}) == page(task_id="other") == []
    assert store.read(lambda db: events.after(db, oldest, 99)).result() == [newest - 1, newest]
    assert store.read(lambda db: events.is_old(db, NOW + 3)).result()
    assert store.write(lambda db: events.sweep(db, NOW + 100)).result() == 2
    assert store.read(events.bounds).result() == (newest, newest), "the newest stays, to tell numbers apart"
    assert not store.read(lambda db: events.is_old(db, NOW + 100)).result()


def test_a_step_that_is_rolled_back_was_none(store: Store) -> None:
    caller = store.write(ala).result()
    found = put(store, caller, url=None)

    def work(db: Connection) -> None:
        events.record(db, [found.number], events.CANCELLING, NOW)
        raise NotAllowed("no")

    before = store.read(events.bounds).result()
    with pytest.raises(NotAllowed):
        store.write(work).result()
    assert store.read(events.bounds).result() == before


def test_acts_are_listed_newest_first(store: Store) -> None:
    for number in range(5):
        store.write(
            lambda db, n=number: audit.record(db, ("root", 1), "user.create", f"u{n}", now=NOW + n, detail={"n": n})
        ).result()
    page = store.read(lambda db: audit.listing(db, limit=2)).result()
    assert [act["target"] for act in page] == ["u4", "u3"]
    rest = store.read(lambda db: audit.listing(db, user="root", after=page[-1]["id"])).result()
    assert [(act["target"], act["detail"]) for act in rest] == [(f"u{n}", {"n": n}) for n in (2, 1, 0)]
    assert store.read(lambda db: audit.listing(db, user="nobody")).result() == []


def words(instance: str | None) -> NodeWords:
    return NodeWords("anvil", "active", (), {}, {}, instance)


def test_a_node_has_one_foreman_until_that_has_been_silent(store: Store) -> None:
    def hear(instance: str | None, now: float) -> None:
        store.write(lambda db: nodes.heard(db, words(instance), 7, now, silent_before=now - 60)()).result()

    hear(None, NOW)
    hear("a", NOW + 1)
    hear("a", NOW + 2)
    hear(None, NOW + 3)
    with pytest.raises(NotAllowed, match="another foreman"):
        hear("b", NOW + 62)
    hear("b", NOW + 64)
    with pytest.raises(NotAllowed, match="another foreman"):
        hear("a", NOW + 65)


def test_a_node_that_is_asked_to_drain_takes_nothing(store: Store) -> None:
    def hear() -> nodes.Standing:
        return store.write(lambda db: nodes.heard(db, words(None), 7, NOW, silent_before=0)()).result()

    assert hear().takes
    store.write(lambda db: nodes.ask(db, "anvil", nodes.DRAIN)).result()
    assert not store.write(lambda db: nodes.stands(db, "anvil")()).result().takes
    assert (hear().takes, hear().asked) == (False, nodes.DRAIN), "a beat does not undo it"
    store.write(lambda db: nodes.ask(db, "anvil", None)).result()
    assert store.write(lambda db: nodes.stands(db, "anvil")()).result().takes
    assert not store.write(lambda db: nodes.stands(db, "nobody")()).result().takes
