"""Grades solutions: our own comparison first, then math-verify for what that leaves open, in a process that can be killed.

math-verify computes with what a model wrote; `9^{9^{9^9}}` keeps it busy for ever. So it runs in a child (`sandbox.py`) with
little memory and time. This side evaluates nothing, waits no longer than its own clock, kills a child that fails, and accepts
only known words as a verdict. Knows no model, no file and no terminal. Use one `Grader` per thread.
"""

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Any, Self, cast

from arbitrage_cli.errors import ProblemError
from arbitrage_cli.grading.compare import compare
from arbitrage_cli.grading.extract import IN_BOX, Extracted, Gold, final_answer, gold_answer
from arbitrage_cli.grading.shown import shown
from arbitrage_cli.types import Grade

RULES_VERSION = 2
"""Increases with every change of our own comparison that can change a verdict."""

_SANDBOX = Path(__file__).with_name("sandbox.py")
_MAX_REPLY = 1000  # bytes of one line of the child
_WALL_FACTOR = 5  # seconds by the wall clock per second of processor time; a busy machine is slow
_GRACE_SECONDS = 1.0  # for a verdict to arrive
_KILL_SECONDS = 5.0  # for a killed process to be gone
_PASSED_ON = ("PYTHON", "PATH", "HOME", "LANG", "LC_", "LD_", "DYLD_")  # of the environment: no keys
_UNDECIDED: Mapping[str, str] = MappingProxyType(
    {
        "gold unread": "math-verify cannot read the gold answer",
        "no memory": "math-verify needs too much memory",
        "failed": "math-verify failed",
        "late": "math-verify gave no verdict in time",
    }
)
"""What the child says if the answer itself is the reason that there is no verdict; another try would not help."""


def grader_version() -> str:
    """What verdicts depend on: the version of our rules, and of the libraries that decide the rest."""
    names = ("math-verify", "latex2sympy2_extended", "sympy")
    return ", ".join([f"rules {RULES_VERSION}", *(f"{name} {version(name)}" for name in names)])


class Grader:
    """Grades answers. A context manager: no child outlives it.

    `seconds` is the processor time of one comparison by math-verify, which also has five times that by the wall clock.
    `start_seconds` bounds the start of the child; `memory` is the address space in bytes that a comparison may add to the
    child's (Linux only).
    """

    protections = ()  # it runs no programs

    def __init__(self, *, seconds: float = 2.5, start_seconds: float = 20.0, memory: int = 300 << 20) -> None:
        self._seconds = seconds
        self._start_seconds = start_seconds
        self._memory = memory
        self._child: _Child | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child. The next answer that needs one starts another."""
        if self._child:
            self._child.end()
            self._child = None

    @property
    def child_id(self) -> int | None:
        """The process id of the child; None while there is none."""
        return self._child.process.pid if self._child else None

    def grade(self, text: str, row: Mapping[str, Any]) -> Grade:
        """Grades a solution by its final answer and the gold answer in a row of a data set (see `gold_answer`).

        No text is an error, and none takes long. ProblemError if the child fails twice: then nothing is known about the answer.
        """
        return self.grade_answer(final_answer(text), gold_answer(row))

    def grade_answer(self, extracted: Extracted, gold: Gold) -> Grade:
        """Grades a final answer that was already extracted from its solution; errors as in `grade`."""
        if gold.answer is None:
            return Grade("unscored", extracted.answer, "the data have no gold answer")
        if extracted.answer is None:
            return Grade("incorrect", None, f"no answer found: {extracted.how}")
        comparison = compare(gold.answer, extracted.answer, gold.unit)
        is_equal = comparison.is_equal
        if is_equal is None:
            word = self._ask(comparison.gold, comparison.answer)
            if word in _UNDECIDED:
                return Grade("unscored", extracted.answer, f"grader: {_UNDECIDED[word]}")
            is_equal = word == "equal"
        found = "" if extracted.how == IN_BOX else f"no \\boxed{{}}, {extracted.how}: "
        sign = "=" if is_equal else "is not"
        explanation = f"{found}{shown(extracted.answer)} {sign} {shown(gold.answer)} ({comparison.rule})"
        return Grade("correct" if is_equal else "incorrect", extracted.answer, explanation)

    def _ask(self, gold: str, answer: str) -> str:
        """The child's word. If the child fails, which says nothing about the answer, a fresh one gets a second try."""
        with contextlib.suppress(_ChildError):
            return self._ask_once(gold, answer)
        try:
            return self._ask_once(gold, answer)
        except _ChildError as error:
            raise ProblemError(f"the answer cannot be graded: {error}", "run the same command again") from error

    def _ask_once(self, gold: str, answer: str) -> str:
        try:
            if self._child is None or self._child.process.poll() is not None:
                self.close()
                self._child = _Child(self._seconds, self._memory)
                self._child.await_ready(self._start_seconds)
            return self._child.ask(gold, answer, _WALL_FACTOR * self._seconds)
        except BaseException:
            self.close()  # its next reply would belong to this question
            raise


class _ChildError(Exception):
    """The child gave no verdict, through no fault of the answer; says why."""


class _Child:
    """The process that runs math-verify, and its two pipes. After any error it must be ended."""

    def __init__(self, seconds: float, memory: int) -> None:
        command = [sys.executable, "-P", str(_SANDBOX), str(seconds), str(_WALL_FACTOR * seconds), str(memory)]
        try:
            self.process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,  # a Ctrl-C is for this process
                env={name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)},
            )
        except OSError as error:
            raise _ChildError(f"math-verify cannot be started ({error.strerror})") from error
        self._pipes = cast("tuple[IO[bytes], IO[bytes]]", (self.process.stdin, self.process.stdout))
        self._requests, self._replies = (pipe.fileno() for pipe in self._pipes)
        os.set_blocking(self._requests, False)
        self._number = 0
        self._unread = b""

    def end(self) -> None:
        """Kills it and its forks, even if it is stopped, and closes the pipes."""
        self._kill()
        for pipe in self._pipes:
            pipe.close()

    def _kill(self) -> None:
        if self.process.returncode is None:  # until it is waited for, no other process gets its number
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_KILL_SECONDS)

    def await_ready(self, seconds: float) -> None:
        """Waits until it has imported its libraries."""
        if self._read_line(time.perf_counter() + seconds, f"math-verify did not start within {seconds:g} s") != "ready":
            raise _ChildError("math-verify did not start as it should")

    def ask(self, gold: str, answer: str, seconds: float) -> str:
        """Its word on two expressions, at most so many seconds later."""
        self._number += 1
        deadline, late = time.perf_counter() + seconds + _GRACE_SECONDS, _UNDECIDED["late"]
        self._write(json.dumps([self._number, gold, answer]).encode() + b"\n", deadline, late)
        match self._read_line(deadline, late):
            case [int(number), str(word)] if number == self._number and word in ("equal", "different", *_UNDECIDED):
                return word
            case [int(number), "killed"] if number == self._number:
                raise _ChildError("math-verify was killed while it computed")
        raise _ChildError("math-verify's verdict cannot be read")

    def _write(self, data: bytes, deadline: float, late: str) -> None:
        while data:
            self._wait(self._requests, select.POLLOUT, deadline, late)
            try:
                data = data[os.write(self._requests, data) :]
            except BrokenPipeError as error:
                raise _ChildError(self._how_it_ended()) from error

    def _read_line(self, deadline: float, late: str) -> object:
        while b"\n" not in self._unread:
            self._wait(self._replies, select.POLLIN, deadline, late)
            data = os.read(self._replies, _MAX_REPLY)
            if not data:
                raise _ChildError(self._how_it_ended())
            self._unread += data
            if len(self._unread) > _MAX_REPLY:
                raise _ChildError("math-verify's verdict is too long")
        line, self._unread = self._unread.split(b"\n", 1)
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _ChildError("math-verify's verdict cannot be read") from error

    @staticmethod
    def _wait(descriptor: int, event: int, deadline: float, late: str) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(0, math.ceil(1000 * (deadline - time.perf_counter())))):
            raise _ChildError(late)

    def _how_it_ended(self) -> str:
        self._kill()  # its pipe is closed: it has ended or will say no more
        code = self.process.returncode
        return f"math-verify was killed (signal {-code})" if code and code < 0 else f"math-verify ended (exit status {code})"
