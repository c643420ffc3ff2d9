"""Device rules go where a process goes.

Version 2 has no controller for devices: what a container may open of them is a BPF program that its engine attached to
the container's control group, in force for whoever is in that group or below it (bpf(2), ``BPF_CGROUP_DEVICE``). A
process that is moved into a session would leave it behind, and a device that its image brought along would be open. So
every program in force where the process comes from is attached where it goes, before it goes. Programs add up: all of
them must allow.

Seeing and attaching programs is for those with the capabilities to make such rules (``CAP_BPF`` or ``CAP_SYS_ADMIN``).
An observer that was delegated its groups without these moves processes only within them, where nobody made any.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final

_SYSCALL: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
ATTACH: Final = 8
_GET_FD_BY_ID: Final = 13
_QUERY: Final = 16
_CGROUP_DEVICE: Final = 6
_EFFECTIVE: Final = 1
ALLOW_MULTI: Final = 2
_MOST: Final = 64
"""programs in force in one group, as the kernel allows them"""
_UNRULED: Final = (errno.EPERM, errno.EINVAL, errno.EBADF, errno.ENOSYS)
"""no right to see any; a kernel without such programs; a folder that is no control group; a kernel before 4.15"""
_library: Final = ctypes.CDLL(None, use_errno=True)


def kernel(command: int, words: bytearray) -> int:
    """bpf(2). OSError as the kernel gives it; ``words`` also takes the answer."""
    number = _SYSCALL.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    buffer = (ctypes.c_char * len(words)).from_buffer(words)
    answer: int = _library.syscall(ctypes.c_long(number), ctypes.c_int(command), buffer, ctypes.c_uint(len(words)))
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer


def carry(source: bytes, target: bytes) -> None:
    """Put the device rules of the group ``source`` also on ``target``. OSError where the kernel refuses."""
    try:
        here = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:  # the process has gone, and its group with it
        return
    try:
        rules = in_force(here)
    except OSError as error:
        if error.errno in _UNRULED:
            return
        raise
    finally:
        os.close(here)
    if not rules:
        return
    there = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        known = in_force(there)
        for rule in rules:
            if rule not in known:
                _attach(rule, there)
    finally:
        os.close(there)


def in_force(group: int) -> tuple[int, ...]:
    """Ids of the programs that hold in a group, its own and those above."""
    ids = (ctypes.c_uint32 * _MOST)()
    words = bytearray(struct.pack("=IIIIQI28x", group, _CGROUP_DEVICE, _EFFECTIVE, 0, ctypes.addressof(ids), _MOST))
    kernel(_QUERY, words)
    count = struct.unpack_from("=I", words, 24)[0]
    return tuple(ids[:count])


def _attach(rule: int, group: int) -> None:
    program = kernel(_GET_FD_BY_ID, bytearray(struct.pack("=III52x", rule, 0, 0)))
    try:
        kernel(ATTACH, bytearray(struct.pack("=IIII48x", group, program, _CGROUP_DEVICE, ALLOW_MULTI)))
    finally:
        os.close(program)
