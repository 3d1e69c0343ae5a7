"""A filter of system calls for Linux: no processes, programs, sockets or signals, nothing of the kernel's that programs do not need.

Everything else is allowed. A call that is refused fails with EPERM.
"""

import ctypes
import errno
import platform
from collections.abc import Mapping
from types import MappingProxyType

from arbitrage_cli.grading.programs.system_calls import PR_SET_SECCOMP, prctl

_BOTH: tuple[int, ...] = (424, 425, 428, 429, 430, 431, 432, 433, 434, 435, 438, 440, 442)
"""pidfd_send_signal, io_uring_setup, open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, pidfd_open, clone3, pidfd_getfd,
process_madvise, mount_setattr: the same numbers everywhere."""

_REFUSED: Mapping[str, tuple[int, tuple[int, ...]]] = MappingProxyType(
    {
        "x86_64": (
            0xC000003E,
            (
                *(56, 57, 58, 59, 322),  # clone, fork, vfork, execve, execveat
                *(41, 53),  # socket, socketpair
                *(62, 200, 234, 129, 297),  # kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo
                *(101, 310, 311),  # ptrace, process_vm_readv, process_vm_writev
                *(
                    272,
                    308,
                    165,
                    166,
                    155,
                    161,
                    304,
                ),  # unshare, setns, mount, umount2, pivot_root, chroot, open_by_handle_at
                *(321, 298, 323, 319),  # bpf, perf_event_open, userfaultfd, memfd_create
                *(250, 248, 249),  # keyctl, add_key, request_key
                *(302, 160, 141, 203, 144, 109, 112),  # prlimit64, setrlimit, setpriority, sched_set..., setpgid, setsid
                *(29, 64, 68, 240),  # shmget, semget, msgget, mq_open
            ),
        ),
        "aarch64": (
            0xC00000B7,
            (
                *(220, 221, 281),
                *(198, 199),
                *(129, 130, 131, 138, 240),
                *(117, 270, 271),
                *(97, 268, 40, 39, 41, 51, 265),
                *(280, 241, 282, 279),
                *(219, 217, 218),
                *(261, 164, 140, 122, 119, 154, 157),
                *(194, 190, 186, 180),
            ),
        ),
    }
)
"""For a processor: the number that marks its system calls, and those that are refused, in the same order."""

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # instructions of the Berkeley packet filter
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4  # of struct seccomp_data
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM
_FOREIGN = 0x40000000  # from here on: calls of x32, which are others
_MODE_FILTER = 2


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("if_true", ctypes.c_uint8), ("if_false", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def filter_system_calls() -> None:
    """From now on, refuse what programs do not need. Needs no_new_privs. OSError if this system cannot."""
    if platform.machine() not in _REFUSED:
        raise OSError(errno.ENOSYS, "no filter for this processor")
    architecture, numbers = _REFUSED[platform.machine()]
    refused = (*numbers, *_BOTH)
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, len(refused) + 1, 0, _FOREIGN),
        *((_EQUAL, len(refused) - index, 0, number) for index, number in enumerate(refused)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _FAIL),
    ]
    instructions = (_Instruction * len(lines))(*(_Instruction(*line) for line in lines))
    prctl(PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(_Filter(len(lines), instructions)))
