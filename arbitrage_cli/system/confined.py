"""Runs a function in a forked child with little time and memory, so that no file can hang this process or fill its memory.

The function may only compute in Python: of this process's threads the child has none but its own. Knows nothing of what it runs.
"""

import contextlib
import os
import resource
import select
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from arbitrage_cli.system.files import write_all
from arbitrage_cli.system.held_signals import ENDING

WALL_FACTOR = 5  # seconds by the wall clock per second of processor time; a busy machine is slow
_NO_MEMORY = 3  # the exit status of a child that ran out of memory
_CHUNK = 1 << 16  # bytes


class ConfinedError(Exception):
    """The child gave no answer; says why."""


def confined(function: Callable[[], str], *, seconds: float, memory: int) -> str:
    """What the function returns in a child that may compute for so many seconds and take so many bytes more. ConfinedError."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: of a process with threads
        try:
            child = os.fork()
        except OSError as error:
            os.close(reader)
            os.close(writer)
            raise ConfinedError(f"no process can be started ({error.strerror})") from error
    if not child:
        _answer_and_exit(function, writer, seconds, memory)
    os.close(writer)
    try:
        answer = _read(reader, time.perf_counter() + WALL_FACTOR * seconds)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    if answer is not None and status == 0:
        return answer.decode()
    if answer is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF):
        raise ConfinedError(f"not finished after {seconds:g} s")
    if status == _NO_MEMORY << 8:
        raise ConfinedError(f"it needs more than {memory >> 20} MB")
    raise ConfinedError(f"it ended its process (status {os.waitstatus_to_exitcode(status)})")


def limit_memory(more: int) -> None:
    """Let this process map so many bytes more than now. No effect if the system cannot limit that."""
    with contextlib.suppress(OSError, ValueError):
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = in_use + more if soft == resource.RLIM_INFINITY else min(soft, in_use + more)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _answer_and_exit(function: Callable[[], str], writer: int, seconds: float, memory: int) -> NoReturn:
    """In the child: never back into the caller's code, whatever happens."""
    status = 1
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        os.closerange(3, writer)  # the lock of a run folder among them: if this process is killed, it is free at once
        os.closerange(writer + 1, os.sysconf("SC_OPEN_MAX"))
        for number in (*ENDING, signal.SIGPROF):
            signal.signal(number, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limit_memory(memory)
        write_all(writer, function().encode())
        status = 0
    except MemoryError:
        status = _NO_MEMORY
    finally:
        os._exit(status)


def _read(reader: int, deadline: float) -> bytes | None:
    """Everything up to the end; None if that does not come in time."""
    data = b""
    while select.select([reader], [], [], max(0, deadline - time.perf_counter()))[0]:
        chunk = os.read(reader, _CHUNK)
        if not chunk:
            return data
        data += chunk
    return None
