"""Whether the kernel favours moves into control groups, as the mount table tells."""

from __future__ import annotations

import pytest

from kolejka.observer.cgroups import moves

PLAIN = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
FAVORED = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,favordynmods\n"
OTHER = "31 23 0:27 / /proc rw - proc proc rw\n"


@pytest.mark.parametrize(
    ("mountinfo", "favored"), [(OTHER + PLAIN, False), (OTHER + FAVORED, True), (OTHER, None), ("", None)]
)
def test_the_mount_option_tells_whether_moves_are_fast(mountinfo: str, favored: bool | None) -> None:
    assert moves.are_favored(mountinfo) is favored
