from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kolejka.common.limits import LIMITS, Limits, Share
from kolejka.foreman.pack import Ahead, Cpu, Misfit, Offer, Placement, Wish, ahead, choose_cpus, free, place
from tests.unit.foreman_fakes import offer_of


def threads(cores: int, per_core: int = 2, nodes: int = 1) -> tuple[Cpu, ...]:
    """CPUs numbered as Linux does: first one thread of every core, then the second ones."""
    return tuple(
        Cpu(thread * cores + core, core, core * nodes // cores) for thread in range(per_core) for core in range(cores)
    )


def wish(cpus: int = 1, **limits: object) -> Wish:
    return Wish(Limits.of(**{"cpus": cpus, "memory": "64M", "pids": 16, **limits}))


@pytest.mark.parametrize(
    ("cpus", "count", "expected"),
    [
        (threads(4), 2, (0, 4)),  # both threads of one core
        (threads(4), 4, (0, 1, 4, 5)),
        (threads(4), 3, (0, 1, 4)),
        (tuple(cpu for cpu in threads(4) if cpu.number != 6), 1, (2,)),  # the left-over thread before a whole core
        (tuple(cpu for cpu in threads(4) if cpu.number != 4), 2, (1, 5)),  # a whole core before two halves
        (threads(4, nodes=2), 4, (0, 1, 4, 5)),  # one memory node
        (tuple(cpu for cpu in threads(4, nodes=2) if cpu.number != 2), 3, (3, 6, 7)),  # the node that it just fills
        (threads(2, per_core=1), 0, ()),
    ],
)
def test_cpus_are_chosen_near_to_one_another(cpus: tuple[Cpu, ...], count: int, expected: tuple[int, ...]) -> None:
    assert choose_cpus(cpus, count) == expected


def test_more_cpus_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="3 of 2"):
        choose_cpus(threads(1), 3)


@pytest.mark.parametrize(
    ("asked", "limit"),
    [
        (wish(cpus=3), "cpus"),
        (wish(memory="9G"), "memory"),
        (wish(pids=1001), "pids"),
        (wish(storage="2G"), "storage"),
        (wish(workspace="2G"), "workspace"),
        (wish(gpus=1), "gpus"),
        (wish(gpu_memory="32G"), "gpu_memory"),
        (wish(network=True), "network"),
    ],
)
def test_a_task_that_wants_more_than_there_is_does_not_fit_and_the_limit_is_named(asked: Wish, limit: str) -> None:
    offer = offer_of(storage="1G", workspace="1G", gpus=0, gpu_memory="16G", network=False)
    answer = place(offer, [], asked)
    assert isinstance(answer, Misfit)
    assert answer.limit == limit


def test_a_second_task_does_not_fit_where_the_first_took_the_memory() -> None:
    first = place(offer_of(), [], wish(memory="5G"))
    assert isinstance(first, Placement)
    assert place(offer_of(), [first], wish(memory="4G")) == Misfit(
        "the task wants 4G of memory, and 3G is free", "memory"
    )


def test_gpus_are_given_by_name_and_never_to_two() -> None:
    offer = replace(offer_of(4, gpus=3, gpu_memory="16G"), gpus=("GPU-a", "GPU-b", "GPU-c"))
    first, second = place(offer, [], wish(gpus=1)), place(offer, [], wish(gpus=2))
    assert isinstance(first, Placement)
    assert isinstance(second, Placement)
    assert (first.gpus, second.gpus) == (("GPU-a",), ("GPU-a", "GPU-b"))
    beside = place(offer, [first], wish(gpus=2, gpu_memory="8G"))
    assert isinstance(beside, Placement)
    assert beside.gpus == ("GPU-b", "GPU-c")
    assert place(offer, [first, beside], wish(gpus=1)) == Misfit("the task wants 1 of gpus, and 0 is free", "gpus")
    assert free(offer, [first]).limits.get("gpus") == 2
    none = place(offer, [first], wish())
    assert isinstance(none, Placement)
    assert none.gpus == ()


def test_an_exclusive_task_runs_alone() -> None:
    offer = offer_of(4)
    exclusive = Wish(wish().limits, exclusive=True)
    running = place(offer, [], wish())
    assert isinstance(running, Placement)
    assert isinstance(place(offer, [running], exclusive), Misfit)
    alone = place(offer, [], exclusive)
    assert isinstance(alone, Placement)
    assert isinstance(place(offer, [alone], wish()), Misfit)
    left = free(offer, [alone])
    assert (left.slots, left.cpus, left.idle) == (0, (), False)


def test_slots_bound_the_number_of_tasks() -> None:
    offer = offer_of(4, slots=1)
    first = place(offer, [], wish())
    assert isinstance(first, Placement)
    assert isinstance(place(offer, [first], wish()), Misfit)


def test_tasks_with_the_same_image_share_its_size() -> None:
    offer = offer_of(8, image="10G")
    first = place(offer, [], Wish(wish(image="6G").limits, image="a"))
    assert isinstance(first, Placement)
    assert isinstance(place(offer, [first], Wish(wish(image="6G").limits, image="a")), Placement)
    assert isinstance(place(offer, [first], Wish(wish(image="6G").limits, image="b")), Misfit)
    assert free(offer, [first, first]).limits.get("image") == 4 << 30


def test_a_task_without_limits_takes_what_is_free_and_one_cpu() -> None:
    offer = offer_of(4, swap="1G", gpus=2)
    first = place(offer, [], wish(memory="3G"))
    assert isinstance(first, Placement)
    second = place(offer, [first], Wish(Limits()))
    assert isinstance(second, Placement)
    assert second.taken == Limits.of(cpus=1, memory="5G", swap=0, pids=984, gpus=0)
    assert isinstance(place(offer, [first, second], Wish(Limits())), Misfit)


SPLIT = [name for name, limit in LIMITS.items() if limit.share is Share.SPLIT and name not in {"cpus", "gpus"}]
amounts = st.fixed_dictionaries({name: st.integers(4096, 1 << 20) for name in SPLIT})
wishes = st.builds(
    lambda cpus, gpus, values, exclusive: Wish(Limits({"cpus": cpus, "gpus": gpus, **values}), exclusive),
    st.integers(1, 6),
    st.integers(0, 3),
    st.dictionaries(st.sampled_from(SPLIT), st.integers(1, 1 << 19)),
    st.booleans(),
)


@given(
    cores=st.integers(1, 8), per_core=st.integers(1, 2), nodes=st.integers(1, 2), slots=st.integers(1, 8),
    gpus=st.integers(0, 4), total=amounts, moves=st.lists(st.one_of(wishes, st.integers(0, 7)), max_size=24),
)  # fmt: skip
def test_placements_never_overlap_and_never_exceed_the_offer(
    *, cores: int, per_core: int, nodes: int, slots: int, gpus: int, total: dict[str, int], moves: list[Wish | int]
) -> None:
    cpus = threads(cores, per_core, nodes)
    names = tuple(f"GPU-{number}" for number in range(gpus))
    offer = Offer(Limits({"cpus": len(cpus), "gpus": gpus, **total}), cpus, slots, names)
    held: list[Placement] = []
    for move in moves:
        if isinstance(move, int):
            if held:
                held.pop(move % len(held))
            continue
        answer = place(offer, held, move)
        if isinstance(answer, Placement):
            assert len(answer.cpuset) == answer.taken.get("cpus") == move.limits.get("cpus")
            held.append(answer)
            assert len(answer.gpus) == answer.taken.get("gpus") == move.limits.get("gpus")
        given = [gpu for placement in held for gpu in placement.gpus]
        assert len(given) == len(set(given))
        assert set(given) <= set(names)
        used = [number for placement in held for number in placement.cpuset]
        assert len(used) == len(set(used))
        assert set(used) <= {cpu.number for cpu in cpus}
        assert len(held) <= slots
        assert len(held) == 1 or not any(placement.exclusive for placement in held)
        left = free(offer, held)
        for name in SPLIT:
            taken = sum(placement.taken.get(name) or 0 for placement in held)
            assert taken <= total[name]
            if not any(placement.exclusive for placement in held):
                assert left.limits.get(name) == total[name] - taken


@given(cores=st.integers(1, 8), count=st.integers(0, 16), busy=st.sets(st.integers(0, 15)))
def test_cores_are_broken_up_only_where_the_count_is_odd_or_halves_are_left(
    cores: int, count: int, busy: set[int]
) -> None:
    cpus = [cpu for cpu in threads(cores) if cpu.core not in busy]  # whole cores only
    if count > len(cpus):
        return
    chosen = set(choose_cpus(cpus, count))
    assert len(chosen) == count
    by_core = [{cpu.number for cpu in cpus if cpu.core == core} for core in {cpu.core for cpu in cpus}]
    assert sum(1 for core in by_core if len(core & chosen) == 1) == count % 2


def test_as_much_is_taken_on_ahead_as_short_tasks_held_that_ended() -> None:
    offer = offer_of(4)
    first = place(offer, [], wish(2))
    assert isinstance(first, Placement)
    nothing = Limits({"cpus": 0, "memory": 0, "pids": 0})
    assert ahead(offer, [], []) == Ahead(nothing, 0)
    assert ahead(offer, [first, first], []) == Ahead(Limits.of(cpus=4, memory="128M", pids=32), 2)
    assert ahead(offer, [first, first], [wish(1)]) == Ahead(Limits.of(cpus=3, memory="64M", pids=16), 1)
    assert ahead(offer, [first], [wish(1), wish(8)]) == Ahead(nothing, 0)
    assert ahead(offer, [first], [Wish(Limits())]) == Ahead(Limits.of(cpus=1, memory="64M", pids=16), 0)
