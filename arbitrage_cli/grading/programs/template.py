"""The process whose forks run programs and tests: so that none of them waits for Python to start.

It reads neither: each fork reads what it needs from its own descriptor, and no fork inherits anything of an earlier one. The
runner sends limits, which starts two forks, then a byte, which ends them, and gets how they ended. The first message lists what protects
this machine, and what nothing does. Usage: main(descriptor of the runner, folder of its own).
"""

import os
import random
import signal
import socket
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import NoReturn

from arbitrage_cli.grading.programs.candidate import serve
from arbitrage_cli.grading.programs.codec import write_message
from arbitrage_cli.grading.programs.confinement import Confinement, prepare
from arbitrage_cli.grading.programs.judge import judge

_PRELOADED = (
    "array",
    "bisect",
    "cmath",
    "copy",
    "datetime",
    "hashlib",
    "heapq",
    "itertools",
    "statistics",
    "string",
    "typing",
)
"""What programs often import."""
_FIRST = 3  # descriptor of a fork, after the standard streams
_FAILED = 1  # exit status of a fork that could not be confined


def main(runner: int, folder: str) -> None:
    """Serve the runner until it closes its end."""
    for name in _PRELOADED:
        import_module(name)
    confinement = prepare(folder)
    with socket.socket(fileno=runner) as connection:
        write_message(connection, [confinement.protections, confinement.unprotected])
        while _run(connection, confinement):
            pass


def _run(connection: socket.socket, confinement: Confinement) -> bool:
    """Start the two processes of one program and end them when told to. False if the runner is gone."""
    start, descriptors, _, _ = socket.recv_fds(connection, 64, 3)
    if not start:
        return False
    seconds, judge_seconds, memory = map(int, start.split())
    control, judge_link, candidate_link = descriptors
    with confinement.empty_folder() as folder:
        candidate = confinement.fork()
        if not candidate:
            _work(partial(confinement.enter, folder, seconds, memory), serve, [candidate_link])
        judging = confinement.fork()
        if not judging:
            _work(partial(confinement.enter, folder, judge_seconds, memory), judge, [control, judge_link])
        for descriptor in descriptors:
            os.close(descriptor)
        is_told = bool(connection.recv(1))
        ended = [_end(judging), _end(candidate)]
    if is_told:
        write_message(connection, ended)
    return is_told


def _work(confine: Callable[[], None], task: Callable[..., None], descriptors: list[int]) -> NoReturn:
    """In a fork: the task, with these descriptors and no others."""
    status = _FAILED
    try:
        kept = [os.dup(descriptor) for descriptor in descriptors]  # above all of them
        for place, descriptor in enumerate(kept, _FIRST):
            os.dup2(descriptor, place)
        os.closerange(_FIRST + len(kept), os.sysconf("SC_OPEN_MAX"))
        random.seed(0)  # the same in every run
        connections = [socket.socket(fileno=place) for place, _ in enumerate(kept, _FIRST)]
        confine()
        task(*connections)
        status = 0
    finally:
        os._exit(status)


def _end(child: int) -> tuple[int, float]:
    """Kill a fork; its exit code, negative if a signal ended it, and its processor time in seconds."""
    os.kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
