"""A filter of system calls for Linux: no processes, programs, sockets or signals, nothing of the kernel's that programs do not need.

It also refuses what Landlock lets through: modes, owners, times and attributes of files, which are the user's where programs run as
the user; and to name a process that gets a signal when there is something to read.

Everything else is allowed. A call that is refused fails with EPERM.
"""

import ctypes
import errno
import platform
from collections.abc import Mapping
from types import MappingProxyType

from arbitrage_cli.grading.programs.system_calls import PR_SET_SECCOMP, prctl

_BOTH: tuple[int, ...] = (424, 425, 428, 429, 430, 431, 432, 433, 434, 435, 438, 440, 442, 452, 463, 466, 469)
"""pidfd_send_signal, io_uring_setup, open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, pidfd_open, clone3, pidfd_getfd,
process_madvise, mount_setattr, fchmodat2, setxattrat, removexattrat, file_setattr: the same numbers everywhere."""

_COMMANDS = (8, 10, 15, 0x8901, 0x8902, 0x5412)
"""F_SETOWN, F_SETSIG, F_SETOWN_EX of fcntl; FIOSETOWN, SIOCSPGRP, TIOCSTI of ioctl."""

_REFUSED: Mapping[str, tuple[int, tuple[int, int], tuple[int, ...]]] = MappingProxyType(
    {
        "x86_64": (
            0xC000003E,
            (72, 16),
            (
                *(90, 91, 268, 92, 93, 94, 260),  # chmod, fchmod, fchmodat, chown, fchown, lchown, fchownat
                *(132, 235, 261, 280),  # utime, utimes, futimesat, utimensat
                *(188, 189, 190, 197, 198, 199),  # setxattr, lsetxattr, fsetxattr, removexattr, lremovexattr, fremovexattr
                *(76, 162, 306),  # truncate, sync, syncfs
                *(30, 31, 65, 66, 220, 69, 70, 71, 241),  # shmat, shmctl, semop, semctl, semtimedop, msg..., mq_unlink
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
            (25, 29),
            (
                *(52, 53, 55, 54),
                *(88,),
                *(5, 6, 7, 14, 15, 16),
                *(45, 81, 267),
                *(196, 195, 193, 191, 192, 189, 188, 187, 181),
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
"""For a processor: the number that marks its system calls, fcntl and ioctl, and those that are refused, in the same order."""

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # instructions of the Berkeley packet filter
_NUMBER_AT, _ARCHITECTURE_AT, _COMMAND_AT = 0, 4, 24  # of struct seccomp_data; a command is the second argument
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
    architecture, (fcntl, ioctl), numbers = _REFUSED[platform.machine()]
    to_end = -1  # the last line, which refuses
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, to_end, 0, _FOREIGN),
        *((_EQUAL, to_end, 0, number) for number in (*numbers, *_BOTH)),
        (_EQUAL, 1, 0, fcntl),
        (_EQUAL, 0, len(_COMMANDS) + 1, ioctl),
        (_LOAD, 0, 0, _COMMAND_AT),
        *((_EQUAL, to_end, 0, command) for command in _COMMANDS),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _FAIL),
    ]
    jumps = ((code, len(lines) - 2 - at if yes == to_end else yes, no, k) for at, (code, yes, no, k) in enumerate(lines))
    instructions = (_Instruction * len(lines))(*(_Instruction(*line) for line in jumps))
    prctl(PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(_Filter(len(lines), instructions)))
