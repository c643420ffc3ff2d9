"""The system-call filter, run by a small interpreter of classic BPF."""

from __future__ import annotations

import errno
import json
import struct

import pytest

from kolejka.common.errors import NodeError
from kolejka.worker.runtimes import seccomp

X86, ARM, I386 = 0xC000003E, 0xC00000B7, 0x40000003
ALLOW, KILL = 0x7FFF0000, 0x80000000


def answer(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What the filter says to a call, as the kernel would run it. AssertionError when it leaves its own code."""
    words = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("=iIQ6Q", number, architecture, 0, *words)
    code = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        assert at < len(code), "ran off the end"
        operation, true, false, value = code[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif operation == 0x06:
            return value
        elif operation == 0x05:
            at += value
        else:
            taken = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[operation]
            at += true if taken else false


def refused(code: int) -> int:
    return 0x00050000 | code


NATIVE = seccomp.program("x86_64")


@pytest.mark.parametrize(
    ("machine", "architecture", "column"), [("x86_64", X86, 0), ("x86_64", I386, 2), ("aarch64", ARM, 1)]
)
def test_every_denied_call_is_refused_everywhere(machine: str, architecture: int, column: int) -> None:
    program = seccomp.program(machine)
    for name, numbers in seccomp.DENIED.items():
        number = numbers[column]
        if number is not None:
            assert answer(program, architecture, number) == refused(errno.EPERM), name


@pytest.mark.parametrize("name", ["read", "execve", "mmap", "futex", "fork", "wait4", "statx", "prctl", "seccomp"])
def test_what_programs_live_on_is_allowed(name: str) -> None:
    numbers = {"read": 0, "execve": 59, "mmap": 9, "futex": 202, "fork": 57, "wait4": 61, "statx": 332, "prctl": 157,
               "seccomp": 317}  # fmt: skip
    assert answer(NATIVE, X86, numbers[name]) == ALLOW


def test_clone_makes_threads_and_processes_but_no_namespaces() -> None:
    assert answer(NATIVE, X86, 56, 0x3D0F00) == ALLOW
    assert answer(NATIVE, X86, 56, 17) == ALLOW
    for flag in (0x10000000, 0x20000000, 0x40000000, 0x08000000, 0x04000000, 0x02000000, 0x00020000, 0x80):
        assert answer(NATIVE, X86, 56, flag | 17) == refused(errno.EPERM), hex(flag)
    for x86_64, aarch64, i386 in seccomp.ABSENT.values():
        assert answer(NATIVE, X86, x86_64) == answer(NATIVE, I386, i386) == refused(errno.ENOSYS)
        assert answer(seccomp.program("aarch64"), ARM, aarch64) == refused(errno.ENOSYS)


def test_sockets_of_dangerous_families_are_refused() -> None:
    assert answer(NATIVE, X86, 41, 1) == ALLOW
    assert answer(NATIVE, X86, 41, 2) == ALLOW
    assert answer(NATIVE, X86, 41, 38) == refused(errno.EAFNOSUPPORT)
    assert answer(NATIVE, X86, 41, 40) == refused(errno.EAFNOSUPPORT)


def test_no_socket_is_made_by_a_call_that_hides_its_family() -> None:
    assert answer(NATIVE, I386, 102, 1) == refused(errno.ENOSYS)
    assert answer(NATIVE, I386, 102, 9) == ALLOW


def test_bits_that_the_kernel_ignores_change_nothing() -> None:
    high = 1 << 32
    assert answer(NATIVE, X86, 41, high | 40) == refused(errno.EAFNOSUPPORT)
    assert answer(NATIVE, X86, 16, 0, high | 0x5412) == refused(errno.EPERM)
    assert answer(NATIVE, X86, 135, high | 0x0400000) == refused(errno.EPERM)
    assert engine_refuses("socket", high | 40)
    assert engine_refuses("ioctl", 0, high | 0x5412)
    assert engine_refuses("clone", high | 0x10000000)


def engine_refuses(name: str, *arguments: int) -> bool:
    """What the profile says, as libseccomp compares."""
    rules = [rule for rule in json.loads(seccomp.profile())["syscalls"] if rule["names"] == [name]]
    words = [rule["args"][0] for rule in rules]
    assert {word["op"] for word in words} == {"SCMP_CMP_MASKED_EQ"}
    return any(arguments[word["index"]] & word["value"] == word["valueTwo"] for word in words)


def test_personalities_in_the_profile_are_the_same() -> None:
    for value in seccomp.PERSONALITIES:
        assert not engine_refuses("personality", value)
    for bit in range(32):
        allowed = 1 << bit in seccomp.PERSONALITIES
        assert engine_refuses("personality", 1 << bit) is not allowed, hex(1 << bit)
        assert engine_refuses("personality", 0xFFFFFFFF ^ 1 << bit), hex(1 << bit)


def test_personalities_are_the_harmless_ones() -> None:
    for value in seccomp.PERSONALITIES:
        assert answer(NATIVE, X86, 135, value) == ALLOW
    assert answer(NATIVE, X86, 135, 0x0400000) == refused(errno.EPERM)


def test_typing_into_a_terminal_is_refused_and_other_requests_are_not() -> None:
    assert answer(NATIVE, X86, 16, 0, 0x5412) == refused(errno.EPERM)
    assert answer(NATIVE, X86, 16, 0x5412, 0x5401) == ALLOW


def test_x32_numbers_do_not_exist_and_foreign_architectures_end_the_process() -> None:
    assert answer(NATIVE, X86, 0x40000000 | 165) == refused(errno.ENOSYS)
    assert answer(NATIVE, ARM, 0) == KILL
    assert answer(seccomp.program("aarch64"), X86, 0) == KILL


def test_the_kernel_takes_programs_of_this_length() -> None:
    assert len(NATIVE) // 8 <= 4096


def test_an_unknown_machine_is_told() -> None:
    with pytest.raises(NodeError, match="riscv64"):
        seccomp.program("riscv64")


def test_the_profile_for_engines_denies_the_same_names() -> None:
    profile = json.loads(seccomp.profile())
    denied = {name for rule in profile["syscalls"] for name in rule["names"]}
    assert denied >= {*seccomp.DENIED, *seccomp.ABSENT, "clone", "socket", "ioctl"}
    flags = sum(rule["args"][0]["valueTwo"] for rule in profile["syscalls"] if rule["names"] == ["clone"])
    assert flags == seccomp.NAMESPACES
