"""Moves into control groups on this machine."""

from __future__ import annotations

import pytest

from kolejka.observer.cgroups import moves


@pytest.mark.needs("cgroups", "root")
def test_moves_can_be_favored_and_it_stays_so() -> None:
    if moves.are_favored() is None:
        assert moves.favor() == "there is no version-2 mount"
        return
    assert moves.favor() is None
    assert moves.are_favored()
    assert moves.favor() is None
