"""The filter of system calls, alone: it is all that protects a user's files and processes from some of what programs can do."""

import ctypes
import errno
import fcntl
import json
import os
import platform
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from arbitrage_cli.grading.programs.seccomp import filter_system_calls
from arbitrage_cli.grading.programs.system_calls import PR_SET_NO_NEW_PRIVS, prctl

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="there is no filter here"
)


def outcomes(attempts: Mapping[str, Callable[[], object]], answer: Path) -> dict[str, int]:
    """The errno of each attempt, in a process with the filter; 0 if it succeeds."""
    found = {}
    child = os.fork()
    if not child:
        with answer.open("w") as file:
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            filter_system_calls()
            for name, attempt in attempts.items():
                try:
                    attempt()
                    found[name] = 0
                except OSError as error:
                    found[name] = error.errno or -1
            json.dump(found, file)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    read: dict[str, int] = json.loads(answer.read_text())
    return read


def test_what_landlock_lets_through_is_refused(tmp_path: Path) -> None:
    """Where there are no namespaces, programs run as the user."""
    own = tmp_path / "id_rsa"
    own.write_text("secret")
    before = own.stat()
    here, there = socket.socketpair()
    with here, there:
        attempts: dict[str, Callable[[], object]] = {
            "chmod": lambda: own.chmod(0o777),
            "fchmod": lambda: os.fchmod(os.open(own, os.O_RDONLY), 0o777),
            "chown": lambda: os.chown(own, -1, -1),
            "utime": lambda: os.utime(own, (1, 1)),
            "setxattr": lambda: os.setxattr(own, b"user.x", b"1"),
            "truncate": lambda: os.truncate(own, 0),
            "F_SETOWN": lambda: fcntl.fcntl(there, fcntl.F_SETOWN, os.getppid()),
            "F_SETSIG": lambda: fcntl.fcntl(there, fcntl.F_SETSIG, signal.SIGKILL),
            "FIOSETOWN": lambda: fcntl.ioctl(there, 0x8901, struct.pack("i", os.getppid())),
            "FIOSETOWN, high bits set": lambda: _call_ioctl(there, 1 << 32 | 0x8901),
        }
        assert set(outcomes(attempts, tmp_path / "answer").values()) == {errno.EPERM}
    assert own.stat() == before


def _call_ioctl(owner: socket.socket, command: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.ioctl(owner.fileno(), ctypes.c_ulong(command), struct.pack("i", os.getppid())) < 0:
        raise OSError(ctypes.get_errno(), "ioctl")


def test_what_programs_do_with_files_is_allowed(tmp_path: Path) -> None:
    def use_files() -> None:
        with (tmp_path / "x").open("w+") as file:
            file.write("text")
            file.truncate(2)
            fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL))
            file.isatty()
        (tmp_path / "x").rename(tmp_path / "y")

    assert outcomes({"files": use_files}, tmp_path / "answer") == {"files": 0}
    assert (tmp_path / "y").read_text() == "te"
