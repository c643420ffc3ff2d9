"""Which CPUs a session gets."""

from __future__ import annotations

import pytest

from kolejka.observer.cores import choose_cpus, mems_of, parse_list

CORES = (frozenset({0, 4}), frozenset({1, 5}), frozenset({2, 6}), frozenset({3, 7}))
ALL = frozenset(range(8))


@pytest.mark.parametrize(
    ("count", "available", "used", "expected"),
    [
        (2, ALL, {}, {0, 4}),
        (4, ALL, {0: 1, 4: 1}, {1, 5, 2, 6}),
        (8, ALL, {}, set(ALL)),
        (100, frozenset({0, 1}), {}, {0, 1}),
        (1, ALL, {0: 1, 4: 0}, {1}),
        (1, ALL, dict.fromkeys(ALL, 1) | {6: 0, 2: 0}, {2}),
        (2, frozenset({0, 1, 2}), {}, {0, 1}),
        (3, ALL, {}, {0, 4, 1}),
    ],
)
def test_least_used_cores_are_chosen_whole(count, available, used, expected):
    assert choose_cpus(count, available, used, CORES) == expected


def test_cpus_of_no_known_core_are_cores_of_their_own():
    assert choose_cpus(2, frozenset({8, 9, 10}), {8: 1}, CORES) == {9, 10}


@pytest.mark.parametrize(("text", "numbers"), [("0-3,8", {0, 1, 2, 3, 8}), ("", set()), ("5\n", {5})])
def test_the_kernels_lists_are_read(text, numbers):
    assert parse_list(text) == numbers


def test_memory_comes_from_the_nodes_beside_the_cpus():
    nodes = {0: frozenset({0, 1}), 1: frozenset({2, 3})}
    assert mems_of({2}, frozenset({0, 1}), nodes) == {1}
    assert mems_of({1, 2}, frozenset({0, 1}), nodes) == {0, 1}
    assert mems_of({2}, frozenset({0}), nodes) == {0}, "a node that is not ours is none"
    assert mems_of({2}, frozenset({0}), {}) == {0}
