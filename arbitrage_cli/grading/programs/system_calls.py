"""The Linux system calls that Python has no function for. Each raises OSError if the system refuses."""

import ctypes
import os

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_CAPABILITY_VERSION = 0x20080522


def call(name: str, *arguments: object) -> int:
    """Call a function of the C library that gives -1 and errno for an error."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    result = function(*arguments) if function else -1
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)


def prctl(option: int, value: object, more: object = 0) -> None:
    """Change how the kernel treats this process."""
    call("prctl", option, ctypes.c_ulong(value) if isinstance(value, int) else value, more, 0, 0)


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mount a file system, or change a mount."""
    texts = [os.fsencode(text) if text is not None else None for text in (source, target, kind, options)]
    call("mount", *texts[:3], ctypes.c_ulong(flags), texts[3])


def drop_capabilities() -> None:
    """Give up every privilege that a process of root has, in its user namespace too."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    call("capset", header, (ctypes.c_uint32 * 6)())
