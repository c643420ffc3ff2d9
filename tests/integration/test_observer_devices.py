"""Device rules of real control groups: what holds where a process comes from holds where it goes."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from kolejka.observer.cgroups import devices
from kolejka.observer.cgroups.mounts import read_mounts

pytestmark = pytest.mark.needs("root", "cgroups")

PROG_LOAD = 5
CGROUP_DEVICE_PROGRAM = 15
ALLOW_ALL = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0)  # r0 = 1; exit


@pytest.fixture
def groups(cgroup_name: str) -> Iterator[tuple[Path, Path]]:
    mount = read_mounts().v2
    if mount is None:
        pytest.skip("this machine mounts no control groups of version 2")
    places = [Path(mount.point, f"{cgroup_name}-{word}") for word in ("from", "to")]
    for place in places:
        place.mkdir()
    yield places[0], places[1]
    for place in places:
        place.rmdir()


def make_rule(place: Path) -> None:
    code, licence = ctypes.create_string_buffer(ALLOW_ALL), ctypes.create_string_buffer(b"MIT")
    words = struct.pack("=IIQQ40x", CGROUP_DEVICE_PROGRAM, 2, ctypes.addressof(code), ctypes.addressof(licence))
    program = devices.kernel(PROG_LOAD, bytearray(words))
    group = os.open(place, os.O_RDONLY)
    devices.kernel(devices.ATTACH, bytearray(struct.pack("=IIII48x", group, program, 6, devices.ALLOW_MULTI)))
    os.close(group)
    os.close(program)


def rules(place: Path) -> tuple[int, ...]:
    group = os.open(place, os.O_RDONLY)
    try:
        return devices.in_force(group)
    finally:
        os.close(group)


def test_rules_are_carried_once(groups: tuple[Path, Path]) -> None:
    source, target = groups
    before = set(rules(target))
    make_rule(source)
    make_rule(source)
    made = set(rules(source)) - before
    assert len(made) == 2
    for _ in range(2):
        devices.carry(os.fsencode(source), os.fsencode(target))
        assert set(rules(target)) - before == made
        assert len(rules(target)) == len(before) + 2


def test_where_there_are_no_rules_nothing_is_carried(groups: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = groups
    before = rules(target)
    devices.carry(os.fsencode(source), os.fsencode(target))
    devices.carry(os.fsencode(source / "gone"), os.fsencode(target))
    devices.carry(os.fsencode(tmp_path), os.fsencode(target))
    assert rules(target) == before
