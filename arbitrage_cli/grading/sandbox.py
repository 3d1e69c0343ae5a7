"""The process that math-verify runs in: reads a pair of expressions a line, writes a verdict a line.

Started by `grader.py`, by this file's path: it imports nothing of this package, and nothing imports it. Each pair is compared in
a fork of this process with little time and memory, which may not evaluate text as code, start processes, open files for
writing or use the network; so a pair that computes for ever costs one fork, and no verdict depends on the ones before it. Who
reads the verdicts must expect that this process dies at any moment. Knows no problem, no model and no file.

A request is the JSON list [number, gold, answer, seconds, seconds], where the first seconds bound the processor's time and the
others the wall clock; a verdict is [number, word], with a word of `WORDS`. The first line says "ready".
Usage: python grader_child.py BYTES
"""

import contextlib
import functools
import json
import logging
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

WORDS = ("equal", "different", "gold unread", "no memory", "failed", "late")
_FIRST_STATUS = 100  # the exit status that means the first of them
_CLOCKS = (signal.SIGPROF, signal.SIGALRM)  # the signals of the timers below
_REFUSED = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.", "socket.", "shutil.", "ctypes.")
_DECIMALS = 12  # that a decimal has in common with a number such as \\sqrt{2} before they are the same
_PRECISION = 30
_CAPITAL = re.compile(r"(\\[a-zA-Z]+)|([A-DF-Z])(?! ?_)")  # E is Euler's number to it
_FIRST_PAIRS = (("\\sqrt{8}", "2\\sqrt{2}"), ("y=2x", "2y=4x"), ("(0,1)", "0<x<1"), ("x^2-1", "(x+1)(x-1)"))
"""What is compared first, so that SymPy imports what it imports late; some of that needs eval, of its own text."""


def main() -> None:
    """Answers requests until there are no more."""
    verdicts = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):  # whatever is printed is no verdict
        os.dup2(nowhere, stream)
    sys.dont_write_bytecode = True
    memory = int(sys.argv[1]) + _address_space()
    judge = Judge()
    _write(verdicts, "ready")
    for line in sys.stdin.buffer:
        number, gold, answer, seconds, wall_seconds = json.loads(line)
        child = os.fork()
        if child == 0:
            _bounded(seconds, wall_seconds, memory, functools.partial(judge.verdict, gold, answer))
        _write(verdicts, [number, _word(os.waitpid(child, 0)[1])])


def _write(stream: int, message: object) -> None:
    os.write(stream, json.dumps(message).encode() + b"\n")


def _address_space() -> int:
    """Bytes that this process has mapped; 0 where the system does not tell."""
    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[0]) * resource.getpagesize()
    return 0


def _bounded(seconds: float, wall_seconds: float, memory: int, verdict: Callable[[], str]) -> NoReturn:
    """In a fork: ends it with the status that means the verdict. The timers end it whatever it is doing."""
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, wall_seconds)
        with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        sys.addaudithook(_refuse)
        os._exit(_FIRST_STATUS + WORDS.index(verdict()))
    finally:
        os._exit(1)


def _word(status: int) -> str:
    if os.WIFSIGNALED(status):
        return "late" if os.WTERMSIG(status) in _CLOCKS else "failed"
    index = os.WEXITSTATUS(status) - _FIRST_STATUS
    return WORDS[index] if 0 <= index < len(WORDS) else "failed"


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Python asks this before it does something of consequence."""
    if event == "compile":  # a module is compiled under its path; text is compiled for eval
        is_refused = str(arguments[1]).startswith("<")
    elif event == "open":
        is_refused = isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    else:
        is_refused = event.startswith(_REFUSED)
    if is_refused:
        message = f"{event} is not allowed here"
        raise PermissionError(message)


class Judge:
    """math-verify, told to read LaTeX only (its reader of plain text uses eval), without what it gets wrong."""

    def __init__(self) -> None:
        import sympy
        from math_verify import LatexExtractionConfig, LatexNormalizationConfig, parse, verify
        from sympy.parsing import sympy_parser

        logging.disable()
        self._sympy, self._parse, self._verify = sympy, parse, verify
        reads = LatexNormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last")
        self._reads = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=reads)]
        for gold, answer in _FIRST_PAIRS:
            self._compare(gold, answer)
        sympy_parser.parse_expr = self._read_number

    def verdict(self, gold: str, answer: str) -> str:
        """One of `WORDS`."""
        try:
            return self._compare(*_apart(gold, answer))
        except MemoryError:
            return "no memory"
        # What SymPy raises where it cannot decide (NotImplementedError among them), and the limits above: then nothing is known.
        except (ArithmeticError, TypeError, ValueError, NotImplementedError, RecursionError, PermissionError):
            return "failed"

    def _compare(self, gold: str, answer: str) -> str:
        wanted, given = self._read(gold), self._read(answer)
        if wanted is None:
            return "gold unread"
        if given is None or not self._verify(
            wanted, given, float_rounding=_DECIMALS, allow_set_relation_comp=True, timeout_seconds=None
        ):
            return "different"
        return "equal" if self._is_really_equal(wanted, given) else "different"

    def _read(self, text: str) -> Any:
        found = self._parse(
            f"\\boxed{{{text}}}",
            extraction_config=self._reads,
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=None,
        )
        return found[0] if found else None

    def _read_number(self, text: str, **_: object) -> Any:
        """In place of SymPy's way from text to a value, which is eval: math-verify needs it for numbers only."""
        text = text.strip()
        if not re.fullmatch(r"[0-9]+|[0-9]*\.[0-9]+|[0-9]+\.", text):
            raise ValueError(text)
        return self._sympy.Float(text) if "." in text else self._sympy.Integer(int(text))

    def _is_really_equal(self, gold: Any, answer: Any) -> bool:
        """math-verify takes equations without a real solution for equal, and numbers that are tiny."""
        sympy = self._sympy
        if any(isinstance(side, sympy.Eq) for side in (gold, answer)):
            return all(isinstance(side, sympy.Eq) for side in (gold, answer)) and self._is_same_equation(gold, answer)
        if not all(isinstance(side, sympy.Expr) and side.is_number for side in (gold, answer)):
            return True
        difference, size = (abs(sympy.N(value, _PRECISION)) for value in (gold - answer, gold))
        return bool(difference <= size * sympy.Float(10) ** -_DECIMALS)

    def _is_same_equation(self, gold: Any, answer: Any) -> bool:
        """Whether one equation is a multiple of the other."""
        factor = self._sympy.simplify((gold.lhs - gold.rhs) / (answer.lhs - answer.rhs))
        return bool(factor.is_number and factor.is_finite and not factor.is_zero)


def _apart(gold: str, answer: str) -> tuple[str, str]:
    """Both texts with their capital letters marked if one of those also occurs as a small letter: math-verify reads R as r."""
    letters = set(re.sub(r"\\[a-zA-Z]+", "", gold + answer))
    if not any(letter.isupper() and letter.lower() in letters for letter in letters):
        return gold, answer
    marked = [_CAPITAL.sub(lambda found: found[1] or f"{found[2]}_{{9}}", text) for text in (gold, answer)]
    return marked[0], marked[1]


if __name__ == "__main__":
    main()
