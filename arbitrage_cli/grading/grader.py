"""Grades solutions: our own comparison first, and for what it does not decide math-verify, in a process that may be killed.

math-verify computes with what a model wrote; `9^{9^{9^9}}` keeps it busy for ever. So it runs in a child (`grader_child.py`)
with little memory and time. This side never waits longer than its own clock, then kills the child, and starts it again when it
is next needed; it evaluates nothing, and takes from the child only the words that it knows. Knows no model, no file and no
terminal. One `Grader` serves one thread.
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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Any, Self, cast

from arbitrage_cli.errors import ProblemError
from arbitrage_cli.grading.answers import compare
from arbitrage_cli.grading.extract import Extracted, Gold, final_answer, gold_answer
from arbitrage_cli.types import Score

RULES_VERSION = 1
"""Counts the changes of our own comparison that can change a verdict."""

_CHILD = Path(__file__).with_name("sandbox.py")
_MAX_SHOWN = 60  # characters of an answer in an explanation
_MAX_REPLY = 1000  # bytes of one line of the child
_LATE = "math-verify gave no verdict in time"
_UNREADABLE = "math-verify's verdict cannot be read"
_WALL = 3  # seconds by the wall clock for one of the processor
_GRACE_SECONDS = 1.0  # for a verdict to arrive
_END_SECONDS = 5.0  # a killed process takes to be gone
_PASSED_ON = ("PYTHON", "PATH", "HOME", "LANG", "LC_", "LD_", "DYLD_")  # of the environment: no keys


def grader_version() -> str:
    """What verdicts depend on: the version of our rules, and of the libraries that judge the rest."""
    names = ("math-verify", "latex2sympy2_extended", "sympy")
    return ", ".join([f"rules {RULES_VERSION}", *(f"{name} {_version(name)}" for name in names)])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


class _NoVerdictError(Exception):
    """The child gave no verdict; says why."""


class Grader:
    """Judges answers. A context manager: at its end no child is left.

    `seconds` is the processor time of one comparison by math-verify; all of one answer have three times as long by the wall
    clock. `start_seconds` is for starting the child, which is not counted; `memory` is the address space in bytes that a
    comparison may add to the child's (Linux only).
    """

    def __init__(self, *, seconds: float = 2.5, start_seconds: float = 20.0, memory: int = 300 << 20) -> None:
        self._seconds = seconds
        self._start_seconds = start_seconds
        self._memory = memory
        self._left = 0.0  # seconds by the wall clock, for the answer that is being graded
        self._child: _Child | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child. It is started again if there is more to grade."""
        if self._child:
            self._child.end()
            self._child = None

    @property
    def child_id(self) -> int | None:
        """The process id of the child; None while there is none."""
        return self._child.process.pid if self._child else None

    def grade(self, text: str, row: Mapping[str, Any]) -> Score:
        """Judges a solution by its final answer and a row with the gold one (see `gold_answer`).

        Never raises for what a text says, and never waits long.
        """
        return self.grade_answer(final_answer(text), gold_answer(row))

    def reaches(self, text: str, row: Mapping[str, Any]) -> bool:
        """Whether a solution reaches the gold answer. ProblemError where that cannot be told: it is no reward of 0."""
        score = self.grade(text, row)
        if score.value == "unscored":
            raise ProblemError(
                f"a solution cannot be rated by its answer: {score.explanation}", "check the problem's answer"
            )
        return score.value == "correct"

    def grade_answer(self, extracted: Extracted, gold: Gold) -> Score:
        """Judges a final answer that was already taken from its solution."""
        if gold.answer is None:
            return Score("unscored", extracted.answer, "the data have no gold answer")
        if extracted.answer is None:
            return Score("incorrect", None, f"no answer found: {extracted.how}")
        self._left = _WALL * self._seconds
        try:
            judgement = compare(gold.answer, extracted.answer, self._same, gold.unit)
        except _NoVerdictError as error:
            return Score("unscored", extracted.answer, f"grader: {error}")
        found = "" if extracted.is_boxed else f"no \\boxed{{}}, {extracted.how}: "
        sign = "=" if judgement.is_equal else "is not"
        explanation = f"{found}{_shown(extracted.answer)} {sign} {_shown(gold.answer)} ({_shown(judgement.rule)})"
        return Score("correct" if judgement.is_equal else "incorrect", extracted.answer, explanation)

    def _same(self, gold: str, answer: str) -> bool:
        """math-verify's verdict, in what is left of the answer's time; starting the child is not counted."""
        if self._left <= 0:
            raise _NoVerdictError(_LATE)
        try:
            child = self._ready_child()
            began = time.perf_counter()
            word = child.ask(gold, answer, self._seconds, self._left)
            self._left -= time.perf_counter() - began
        except BaseException:
            self.close()  # whatever it may still say belongs to no question
            raise
        if word not in ("equal", "different"):
            raise _NoVerdictError(_WHY_NO_VERDICT.get(word, _UNREADABLE))
        return word == "equal"

    def _ready_child(self) -> "_Child":
        if self._child is None or self._child.process.poll() is not None:
            self.close()
            self._child = _Child(self._memory)
            self._child.await_ready(self._start_seconds)
        return self._child


_WHY_NO_VERDICT: Mapping[str, str] = MappingProxyType(
    {
        "gold unread": "math-verify cannot read the gold answer",
        "no memory": "math-verify needs too much memory",
        "failed": "math-verify failed",
        "late": _LATE,
    }
)


class _Child:
    """The process that runs math-verify, and its two pipes. After any error it must be ended."""

    def __init__(self, memory: int) -> None:
        command = [sys.executable, "-P", str(_CHILD), str(memory)]
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
            message = f"math-verify cannot be started ({error.strerror})"
            raise _NoVerdictError(message) from error
        self._pipes = cast("tuple[IO[bytes], IO[bytes]]", (self.process.stdin, self.process.stdout))
        self._requests, self._replies = (pipe.fileno() for pipe in self._pipes)
        os.set_blocking(self._requests, False)
        self._number = 0
        self._unread = b""

    def end(self) -> None:
        """Kills it and what it forked, also if it is stopped, and frees everything."""
        self._kill()
        for pipe in self._pipes:
            pipe.close()

    def _kill(self) -> None:
        if self.process.returncode is None:  # its number is still its own
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_SECONDS)

    def await_ready(self, seconds: float) -> None:
        """Waits until it has read its libraries."""
        if self._read_line(time.perf_counter() + seconds, f"math-verify did not start within {seconds:g} s") != "ready":
            raise _NoVerdictError("math-verify did not start as it should")

    def ask(self, gold: str, answer: str, seconds: float, wall_seconds: float) -> str:
        """Its word on two expressions, within these bounds on the processor's time and on the wall clock."""
        self._number += 1
        deadline = time.perf_counter() + wall_seconds + _GRACE_SECONDS
        request = [self._number, gold, answer, seconds, wall_seconds]
        self._write(json.dumps(request).encode() + b"\n", deadline)
        match self._read_line(deadline, _LATE):
            case [int(number), str(word)] if number == self._number:
                return word
        raise _NoVerdictError(_UNREADABLE)

    def _write(self, data: bytes, deadline: float) -> None:
        while data:
            self._wait(self._requests, select.POLLOUT, deadline, _LATE)
            try:
                data = data[os.write(self._requests, data) :]
            except BrokenPipeError as error:
                raise _NoVerdictError(self._how_it_ended()) from error

    def _read_line(self, deadline: float, late: str) -> object:
        while b"\n" not in self._unread:
            self._wait(self._replies, select.POLLIN, deadline, late)
            data = os.read(self._replies, _MAX_REPLY)
            if not data:
                raise _NoVerdictError(self._how_it_ended())
            self._unread += data
            if len(self._unread) > _MAX_REPLY:
                raise _NoVerdictError("math-verify's verdict is too long")
        line, self._unread = self._unread.split(b"\n", 1)
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _NoVerdictError(_UNREADABLE) from error

    @staticmethod
    def _wait(descriptor: int, event: int, deadline: float, late: str) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        while (left := deadline - time.perf_counter()) > 0:
            if poll.poll(math.ceil(left * 1000)):
                return
        raise _NoVerdictError(late)

    def _how_it_ended(self) -> str:
        self._kill()  # it has ended, or will not say any more
        code = self.process.returncode
        return f"math-verify was killed (signal {-code})" if code and code < 0 else f"math-verify ended (exit status {code})"


def _shown(text: str) -> str:
    """A text as part of one short line: no control characters, nothing that cannot be written."""
    start = " ".join(text[: 4 * _MAX_SHOWN].split())
    safe = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in start)
    return safe if len(safe) <= _MAX_SHOWN and len(text) <= 4 * _MAX_SHOWN else f"{safe[:_MAX_SHOWN]}…"
