"""The system calls a payload may not make: a filter in classic BPF, assembled here, handed to bubblewrap.

A deny list on the level of Docker's default profile for a container without capabilities: what administrates the
machine (mounts, modules, clocks, swap), makes namespaces, reads kernel memory policies or keys, and the large
interfaces that keep bringing kernel holes (bpf, io_uring, userfaultfd, perf). A denied call fails with EPERM, as it
would for lack of capability. As if the kernel had none (ENOSYS) fail ``clone3``, so that libraries fall back to
``clone``, whose flags a filter can see, and Landlock, whose rules hold files on the disk that no process has open.

The kernel caches which calls a filter always allows (5.11), so the length of the list costs an allowed call nothing.
Programs of 32 bits on x86_64 have their own numbers and their own part of the filter; a foreign architecture or the
x32 numbers end the process, respectively do not exist.
"""

from __future__ import annotations

import errno
import functools
import json
import operator
import platform
import struct
from typing import Final

from kolejka.common.errors import NodeError

# name: numbers on x86_64, aarch64, i386 (None = there is no such call)
DENIED: Final[dict[str, tuple[int | None, int | None, int | None]]] = {
    "_sysctl": (156, None, 149), "acct": (163, 89, 51), "add_key": (248, 217, 286), "afs_syscall": (183, None, 137),
    "bdflush": (None, None, 134), "bpf": (321, 280, 357), "chroot": (161, 51, 61), "clock_adjtime": (305, 266, 343),
    "clock_adjtime64": (None, 405, 405), "clock_settime": (227, 112, 264), "clock_settime64": (None, 404, 404),
    "create_module": (174, None, 127), "delete_module": (176, 106, 129), "fanotify_init": (300, 262, 338),
    "fanotify_mark": (301, 263, 339), "finit_module": (313, 273, 350), "fsconfig": (431, 431, 431),
    "fsmount": (432, 432, 432), "fsopen": (430, 430, 430), "fspick": (433, 433, 433),
    "get_kernel_syms": (177, None, 130), "get_mempolicy": (239, 236, 275), "idle": (None, None, 112),
    "init_module": (175, 105, 128), "io_uring_enter": (426, 426, 426), "io_uring_register": (427, 427, 427),
    "io_uring_setup": (425, 425, 425), "ioperm": (173, None, 101), "iopl": (172, None, 110), "kcmp": (312, 272, 349),
    "kexec_file_load": (320, 294, None), "kexec_load": (246, 104, 283), "keyctl": (250, 219, 288),
    "lookup_dcookie": (212, 18, 253), "mbind": (237, 235, 274), "migrate_pages": (256, 238, 294),
    "mount": (165, 40, 21), "mount_setattr": (442, 442, 442), "move_mount": (429, 429, 429),
    "move_pages": (279, 239, 317), "name_to_handle_at": (303, 264, 341), "nfsservctl": (180, 42, 169),
    "open_by_handle_at": (304, 265, 342), "open_tree": (428, 428, 428), "perf_event_open": (298, 241, 336),
    "pivot_root": (155, 41, 217), "process_madvise": (440, 440, 440), "query_module": (178, None, 167),
    "quotactl": (179, 60, 131), "quotactl_fd": (443, 443, 443), "reboot": (169, 142, 88),
    "request_key": (249, 218, 287), "security": (185, None, None), "set_mempolicy": (238, 237, 276),
    "set_mempolicy_home_node": (450, 450, 450), "setdomainname": (171, 162, 121), "sethostname": (170, 161, 74),
    "setns": (308, 268, 346), "settimeofday": (164, 170, 79), "stime": (None, None, 25), "swapoff": (168, 225, 115),
    "swapon": (167, 224, 87), "sysfs": (139, None, 135), "syslog": (103, 116, 103), "tuxcall": (184, None, None),
    "umount": (None, None, 22), "umount2": (166, 39, 52), "unshare": (272, 97, 310), "uselib": (134, None, 86),
    "userfaultfd": (323, 282, 374), "ustat": (136, None, 62), "vhangup": (153, 58, 111), "vm86": (None, None, 166),
    "vm86old": (None, None, 113),
}  # fmt: skip

ABSENT: Final[dict[str, tuple[int, int, int]]] = {
    "clone3": (435, 435, 435), "landlock_add_rule": (445, 445, 445), "landlock_create_ruleset": (444, 444, 444),
    "landlock_restrict_self": (446, 446, 446),
}  # fmt: skip
"""The same, for calls that fail as on a kernel without them: programs know what to do then."""

_CLONE: Final = (56, 220, 120)
_SOCKET: Final = (41, 198, 359)
_PERSONALITY: Final = (135, 92, 136)
_IOCTL: Final = (16, 29, 54)
_SOCKETCALL: Final = (None, None, 102)
_SYS_SOCKET: Final = 1
"""the number by which ``socketcall`` makes a socket: its family lies in memory, where no filter sees it"""

NAMESPACES: Final = 0x7E020080
"""The CLONE_NEW… flags of ``clone``: user, pid, net, ipc, uts, cgroup, mount, time."""
FAMILIES_DENIED: Final = (38, 40)
"""AF_ALG (kernel crypto) and AF_VSOCK (the hypervisor's side door)."""
PERSONALITIES: Final = (0x0, 0x0008, 0x20000, 0x20008, 0x40000, 0xFFFFFFFF)
"""Linux, 32-bit Linux, the 2.6 version number, both, no address randomisation (debuggers), and the question."""
TIOCSTI: Final = 0x5412
"""Typing into one's terminal, which may be somebody else's."""

_ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003}
_ARCHITECTURE_MAP: Final = [
    {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
    {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
]
_X32: Final = 0x40000000

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_WORD: Final = 0xFFFFFFFF
_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000

Instruction = tuple[int, int, int, int]


def _fail(code: int) -> Instruction:
    return (_RETURN, 0, 0, 0x00050000 | code)


def _rules(column: int) -> list[Instruction]:
    """What follows once the architecture is known: ends in allow or a refusal for every number."""
    rules: list[Instruction] = [(_LOAD, 0, 0, _NUMBER)]
    if column == 0:
        rules += [(_JUMP_AT_LEAST, 0, 1, _X32), _fail(errno.ENOSYS)]
    for numbers in DENIED.values():
        if numbers[column] is not None:
            rules += [(_JUMP_EQUAL, 0, 1, numbers[column] or 0), _fail(errno.EPERM)]
    for absent in ABSENT.values():
        rules += [(_JUMP_EQUAL, 0, 1, absent[column]), _fail(errno.ENOSYS)]
    rules += [
        (_JUMP_EQUAL, 0, 4, _CLONE[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_BITS, 0, 1, NAMESPACES),
        _fail(errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    rules += [
        (_JUMP_EQUAL, 0, 5, _SOCKET[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_EQUAL, 1, 0, FAMILIES_DENIED[0]),
        (_JUMP_EQUAL, 0, 1, FAMILIES_DENIED[1]),
        _fail(errno.EAFNOSUPPORT),
        (_RETURN, 0, 0, _ALLOW),
    ]
    if _SOCKETCALL[column] is not None:  # programs of the last ten years call socket itself
        rules += [
            (_JUMP_EQUAL, 0, 4, _SOCKETCALL[column] or 0),
            (_LOAD, 0, 0, _FIRST_ARGUMENT),
            (_JUMP_EQUAL, 0, 1, _SYS_SOCKET),
            _fail(errno.ENOSYS),
            (_RETURN, 0, 0, _ALLOW),
        ]
    rules += [
        (_JUMP_EQUAL, 0, len(PERSONALITIES) + 3, _PERSONALITY[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        *((_JUMP_EQUAL, len(PERSONALITIES) - i, 0, value) for i, value in enumerate(PERSONALITIES)),
        _fail(errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    rules += [
        (_JUMP_EQUAL, 0, 3, _IOCTL[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT + 8),
        (_JUMP_EQUAL, 0, 1, TIOCSTI),
        _fail(errno.EPERM),
    ]
    return [*rules, (_RETURN, 0, 0, _ALLOW)]


@functools.cache
def profile() -> str:
    """The same filter as container engines take it: a JSON profile, applied by name for every machine.

    Every argument here is 32 bits to the kernel, which ignores what stands above them, and so must each comparison.
    """
    rules: list[dict[str, object]] = [
        {"names": list(DENIED), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM},
        {"names": list(ABSENT), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
    ]

    def refuse(name: str, code: int, index: int, mask: int, value: int) -> None:
        words = {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
        rules.append({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": code, "args": [words]})

    for bit in _bits(NAMESPACES):
        refuse("clone", errno.EPERM, 0, bit, bit)
    for family in FAMILIES_DENIED:
        refuse("socket", errno.EAFNOSUPPORT, 0, _WORD, family)
    refuse("ioctl", errno.EPERM, 1, _WORD, TIOCSTI)
    # A value is refused for a bit that no allowed one has, unless it is the question, which has them all.
    *values, question = PERSONALITIES
    highest = 1 << 31
    for bit in _bits(question & ~highest & ~functools.reduce(operator.or_, values)):
        refuse("personality", errno.EPERM, 0, bit | highest, bit)
    for bit in _bits(question & ~highest):
        refuse("personality", errno.EPERM, 0, bit | highest, highest)
    return json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "archMap": _ARCHITECTURE_MAP, "syscalls": rules})


def _bits(word: int) -> list[int]:
    return [1 << bit for bit in range(32) if word & 1 << bit]


@functools.cache
def program(machine: str = "") -> bytes:
    """The filter for this machine as the kernel takes it: eight bytes an instruction. NodeError where none is known."""
    machine = machine or platform.machine()
    columns = {"x86_64": (("x86_64", 0), ("i386", 2)), "aarch64": (("aarch64", 1),)}
    if machine not in columns:
        raise NodeError(f"no system-call filter is known for {machine}; run payloads on {' or '.join(columns)}")
    code: list[Instruction] = [(_LOAD, 0, 0, _ARCHITECTURE)]
    for name, column in columns[machine]:
        rules = _rules(column)
        # The rules are longer than a conditional jump reaches, so the jump over them is an unconditional one.
        code += [(_JUMP_EQUAL, 1, 0, _ARCHITECTURES[name]), (0x05, 0, 0, len(rules)), *rules]
    code.append((_RETURN, 0, 0, _KILL))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
