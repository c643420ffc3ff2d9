"""Who is woken when: nothing falls between looking and waiting, and no wake-up is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from kolejka.server.storage.base import CancelAsked, TaskDone, TaskWaiting
from kolejka.server.wakes import Waiter, Wakes, wait
from tests.support import wait_until

A_TASK = TaskWaiting("default", 1)


async def forever() -> None:
    await asyncio.Event().wait()


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(body, 20))


def test_a_result_wakes_those_who_wait_for_it_and_nobody_else() -> None:
    async def body() -> None:
        wakes = Wakes()
        with wakes.for_results(["a"]) as one, wakes.for_results(["a"]) as two, wakes.for_results(["b"]) as other:
            wakes.deliver([TaskDone("a")])
            assert one.woken.is_set()
            assert two.woken.is_set()
            assert not other.woken.is_set()
        wakes.deliver([TaskDone("a")])

    run(body())


def test_what_happens_while_one_looks_is_not_lost() -> None:
    async def body() -> None:
        wakes = Wakes()
        with wakes.for_results(["a"]) as waiter:
            waiter.looked()
            wakes.deliver([TaskDone("a")])  # while the database is asked
            assert await wait(waiter, 60, forever)

    run(body())


def test_one_who_waits_for_many_results_is_woken_when_enough_are_there() -> None:
    async def body() -> None:
        wakes = Wakes()
        with wakes.for_results(["a", "b", "c", "d"]) as waiter:
            waiter.looked()
            wakes.deliver([TaskDone("a"), TaskDone("b")])  # of which the look saw the first
            waiter.lacks(2, ["a"])
            waiter.woken.clear()
            wakes.deliver([TaskDone("b"), TaskDone("other")])
            assert not waiter.woken.is_set()
            wakes.deliver([TaskDone("c")])
            assert waiter.woken.is_set()
            waiter.looked()
            wakes.deliver([TaskDone("c"), TaskDone("d")])  # while it looks
            waiter.lacks(2, [])
            assert waiter.woken.is_set()

    run(body())


def test_a_task_wakes_one_claim_that_wants_it_the_oldest() -> None:
    async def body() -> None:
        wakes = Wakes()
        with (
            wakes.for_tasks("no", lambda _: False) as unwilling, wakes.for_tasks("a", lambda _: True) as first,
            wakes.for_tasks("b", lambda _: True) as second,
        ):  # fmt: skip
            wakes.deliver([A_TASK])
            assert [w.woken.is_set() for w in (unwilling, first, second)] == [False, True, False]
            wakes.deliver([A_TASK])
            assert [w.woken.is_set() for w in (unwilling, first, second)] == [False, True, True]

    run(body())


def test_tasks_that_come_together_wake_as_many_claims_and_ask_each_once() -> None:
    async def body() -> None:
        wakes, asked = Wakes(), list[str]()

        def wants(name: str) -> Callable[[TaskWaiting], bool]:
            return lambda _: asked.append(name) or True  # type: ignore[func-returns-value]

        with (
            wakes.for_tasks("a", wants("a")) as first, wakes.for_tasks("b", wants("b")) as second,
            wakes.for_tasks("c", wants("c")) as third,
        ):  # fmt: skip
            wakes.deliver([replace(A_TASK, count=2)])
            assert [w.woken.is_set() for w in (first, second, third)] == [True, True, False]
            assert asked == ["a", "b"], "the third need not be asked"
            wakes.deliver([replace(A_TASK, count=2)])
            assert third.woken.is_set()
            assert asked[2:] == ["a", "c"], "who is awake looks anyway"
            pending = [one.count for w in (first, second, third) for one in w.pending]
            assert sum(pending) == 4, "each is somebody's to hand on"

    run(body())


def test_a_claim_that_leaves_hands_its_wake_up_on() -> None:
    async def body() -> None:
        wakes = Wakes()
        with wakes.for_tasks("b", lambda _: True) as staying:
            with wakes.for_tasks("a", lambda _: True) as leaving:
                staying.woken.set()  # busy looking, so the other is chosen
                wakes.deliver([A_TASK])
                assert leaving.pending == [A_TASK]
                staying.looked()
            assert staying.woken.is_set()

    run(body())


def test_a_claim_that_looked_hands_nothing_on() -> None:
    async def body() -> None:
        wakes = Wakes()
        with wakes.for_tasks("b", lambda _: True) as second:
            second.woken.set()
            with wakes.for_tasks("a", lambda _: True) as first:
                wakes.deliver([A_TASK])
                first.looked()
                second.looked()
            assert not second.woken.is_set()

    run(body())


def test_claims_that_cannot_tell_are_all_woken() -> None:
    async def body() -> None:
        wakes = Wakes()
        with wakes.for_tasks("a", lambda _: None) as first, wakes.for_tasks("b", lambda _: None) as second:
            wakes.deliver([A_TASK])
            assert first.woken.is_set()
            assert second.woken.is_set()

    run(body())


def test_a_cancel_wakes_the_claim_of_that_node() -> None:
    async def body() -> None:
        wakes = Wakes()
        with wakes.for_tasks("a", lambda _: True) as mine, wakes.for_tasks("b", lambda _: True) as other:
            wakes.deliver([CancelAsked("a")])
            assert mine.woken.is_set()
            assert not other.woken.is_set()

    run(body())


def test_closing_wakes_everybody() -> None:
    async def body() -> None:
        wakes = Wakes()
        with wakes.for_tasks("a", lambda _: False) as claim, wakes.for_results(["t"]) as result:
            wakes.close()
            assert wakes.closing
            assert await wait(claim, 60, forever)
            assert await wait(result, 60, forever)

    run(body())


def test_waiting_ends_with_the_time_or_with_the_caller() -> None:
    async def body() -> None:
        assert not await wait(Waiter(), 0, forever)
        assert not await wait(Waiter(), 0.01, forever)

        async def gone() -> None:
            return

        assert not await wait(Waiter(), 60, gone)

    run(body())


def test_a_newer_claim_of_a_node_overtakes_the_older_and_gets_its_wake_up() -> None:
    async def body() -> None:
        wakes = Wakes()
        with wakes.for_tasks("other", lambda _: False) as other, wakes.for_tasks("a", lambda _: True) as old:
            wakes.deliver([A_TASK])
            with wakes.for_tasks("a", lambda _: True, user_id=1) as strangers:
                assert not old.overtaken, "whose node it is, the database says later"
            with wakes.for_tasks("a", lambda _: True) as new:
                assert (old.overtaken, new.overtaken, strangers.overtaken, other.overtaken) == (
                    True,
                    False,
                    False,
                    False,
                )
                assert await wait(old, 60, forever)
                wakes.deliver([A_TASK])
                assert new.pending == [A_TASK], "nobody wakes one who was overtaken"

    run(body())


def test_a_newer_claim_learns_what_the_older_was_given_on_its_way() -> None:
    async def body() -> None:
        wakes = Wakes()

        async def older() -> None:
            with wakes.for_tasks("a", lambda _: True) as claim:
                await wait(claim, 60, forever)
                claim.given = (7, 8)

        leaving = asyncio.ensure_future(older())
        await asyncio.to_thread(wait_until, lambda: wakes.waiting_claims)
        with wakes.for_tasks("a", lambda _: True) as newer:
            assert await newer.unknown() == {7, 8}
        await leaving
        with wakes.for_tasks("a", lambda _: True) as last:
            assert await last.unknown() == frozenset()

    run(body())


def test_a_node_that_changed_looks_again_and_a_heartbeat_is_heard_by_its_claims() -> None:
    async def body() -> None:
        wakes = Wakes()
        with wakes.for_tasks("a", lambda _: True) as mine, wakes.for_tasks("b", lambda _: True) as other:
            wakes.node_changed("a")
            wakes.heard("a", 5.0)
            assert (mine.woken.is_set(), mine.heard, other.woken.is_set(), other.heard) == (True, 5.0, False, 0.0)

    run(body())
