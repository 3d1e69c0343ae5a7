"""Runs a program and its tests in processes of their own, and says whether it passes. Knows no model, no file and no terminal.

The program is hostile. It has its process, which answers calls and never sees a test. The tests have another one, where no code of
the program's runs. Both are forks of a template, and are gone when a verdict is. See the guide "code" for what stops what.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast, get_args

from arbitrage_cli.errors import ProblemError
from arbitrage_cli.grading.programs.codec import BadMessageError, read_message, write_message
from arbitrage_cli.grading.programs.confinement import remove
from arbitrage_cli.grading.programs.judge import MAX_TESTS
from arbitrage_cli.grading.programs.records import Isolation, Tests, Verdict, VerdictValue
from arbitrage_cli.grading.shown import shown

_PACKAGES = Path(__file__).parents[3]
_START = (
    "import sys; sys.path.insert(0, sys.argv[3]); from arbitrage_cli.grading.programs.template import main; "
    "del sys.path[0]; main(int(sys.argv[1]), sys.argv[2])"
)
_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # all that is passed on: Python may need it to start
_START_SECONDS = 20.0
_END_SECONDS = 5.0
_WALL_FACTOR = 5  # seconds by the wall clock per second of processor time; a busy machine is slow
_JUDGE_FACTOR = 2  # seconds for the tests themselves per second for the program
_CLOCK = 0.2  # seconds by which measured processor time may be short
_MAX_REASON = 300  # characters


class ProgramRunner:
    """Runs programs. A context manager: no process and no file outlives it. Use one per thread.

    `seconds` is the processor time of a program with all its tests, which also has five times that by the wall clock. `memory` is
    the address space in bytes that it may add to Python's own (Linux only).
    """

    def __init__(self, *, seconds: int = 5, memory: int = 512 << 20) -> None:
        self._seconds = seconds
        self._memory = memory
        self._template: _Template | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all processes. The next program starts others."""
        if self._template:
            self._template.end()
            self._template = None

    @property
    def isolation(self) -> Isolation:
        """How programs are kept apart from this machine. ProblemError if they cannot be run."""
        try:
            return self._started().isolation
        except _TemplateError as error:
            raise _cannot_run(error) from error

    def run(self, program: str, tests: Tests) -> Verdict:
        """The verdict on a program. Whatever the program does is no error, and none takes long.

        ProblemError if its processes fail twice for another reason: then nothing is known about the program.
        """
        with contextlib.suppress(_TemplateError):
            return self._run_once(program, tests)
        try:
            return self._run_once(program, tests)
        except _TemplateError as error:
            raise _cannot_run(error) from error

    def _run_once(self, program: str, tests: Tests) -> Verdict:
        limits = _Limits(self._seconds, _JUDGE_FACTOR * self._seconds, self._memory)
        try:
            return self._started().run([program, tests.names, tests.script, tests.preamble], limits)
        except BaseException:
            self.close()  # its next reply would belong to this program
            raise

    def _started(self) -> "_Template":
        if self._template is None:
            self._template = _Template()
        return self._template


def _cannot_run(error: "_TemplateError") -> ProblemError:
    return ProblemError(f"the program cannot be run: {error}", "run the same command again")


class _TemplateError(Exception):
    """The processes failed, through no fault of the program; says why."""


@dataclass(frozen=True, slots=True)
class _Limits:
    """Processor time for the program and for its tests, and bytes for each."""

    seconds: int
    judge_seconds: int
    memory: int


class _Template:
    """The process that forks the others, and the folder that is its own. After any error it must be ended."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="arbitrage-")
        self._connection, there = socket.socketpair()
        self._process: subprocess.Popen[bytes] | None = None
        try:
            with there:
                self._process = self._start(there.fileno())
            self.isolation = Isolation(*map(tuple, self._reply(_START_SECONDS)))
        except BaseException:
            self.end()
            raise

    def _start(self, descriptor: int) -> "subprocess.Popen[bytes]":
        arguments = [str(descriptor), self._folder, str(_PACKAGES)]
        try:
            return subprocess.Popen(  # noqa: S603
                [sys.executable, "-s", "-S", "-P", "-B", "-c", _START, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[descriptor],
                start_new_session=True,  # a Ctrl-C is for this process
                cwd="/",
                env=_environment(),
            )
        except OSError as error:
            raise _TemplateError(f"no process can be started ({error.strerror})") from error

    def end(self) -> None:
        """Let it end its forks, or kill it, and remove its folder."""
        self._connection.close()
        if self._process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
            self._process.kill()
            self._process.wait()
        remove(self._folder)

    def run(self, request: Sequence[object], limits: _Limits) -> Verdict:
        """The verdict on a program."""
        control, control_there = socket.socketpair()
        judge_link, candidate_link = socket.socketpair()
        with control:
            with control_there, judge_link, candidate_link:
                start = f"{limits.seconds} {limits.judge_seconds} {limits.memory}".encode()
                descriptors = [one.fileno() for one in (control_there, judge_link, candidate_link)]
                self._send(lambda: socket.send_fds(self._connection, [start], descriptors))
            said = _verdict_on(control, request, _WALL_FACTOR * limits.seconds)
        self._send(lambda: self._connection.send(b"."))
        judge, candidate = (_Ended(*one) for one in self._reply(_END_SECONDS))
        return _verdict(said, judge, candidate, limits)

    def _send(self, send: Callable[[], object]) -> None:
        try:
            send()
        except OSError as error:
            raise _TemplateError(f"their process is gone ({error.strerror})") from error

    def _reply(self, seconds: float) -> Any:
        self._connection.settimeout(seconds)
        try:
            return read_message(self._connection)
        except (EOFError, BadMessageError, TimeoutError) as error:
            raise _TemplateError("the process that starts them does not answer") from error


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a process ended: exit code, negative for a signal, and processor time in seconds."""

    code: int
    seconds: float


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in _ENVIRONMENT}
    return {**kept, "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}  # sets have the same order in every run


def _verdict_on(control: socket.socket, request: Sequence[object], seconds: float) -> object:
    """What the judge says: [value, reason], or "late" or "gone". _TemplateError if it did not begin."""
    control.settimeout(seconds)
    try:
        read_message(control)
    except (EOFError, BadMessageError, TimeoutError) as error:
        raise _TemplateError("their processes cannot be confined") from error
    deadline = time.perf_counter() + seconds
    try:
        write_message(control, request, MAX_TESTS)
        control.settimeout(max(0.1, deadline - time.perf_counter()))
        return read_message(control)
    except TimeoutError:
        return "late"
    except (EOFError, BadMessageError):
        return "gone"


def _verdict(said: object, judge: _Ended, candidate: _Ended, limits: _Limits) -> Verdict:
    """The judge's verdict, and what the ends of the two processes say if it has none."""
    match said:
        case ["ended", _] if candidate.seconds >= limits.seconds - _CLOCK:
            return Verdict("time", f"it computes for more than {limits.seconds} s")
        case ["ended", _]:
            return Verdict("ended", f"it ended its process ({_how(candidate.code)})")
        case [str(value), str(reason)] if value in get_args(VerdictValue):
            return Verdict(cast("VerdictValue", value), shown(reason, _MAX_REASON))
        case "late":
            return Verdict("time", f"not finished after {_WALL_FACTOR * limits.seconds} s")
        case _ if judge.seconds >= limits.judge_seconds - _CLOCK:
            return Verdict("time", f"the tests compute with its answers for more than {limits.judge_seconds} s")
    return Verdict("error", f"the tests cannot cope with its answers ({_how(judge.code)})")


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit status {code}"
