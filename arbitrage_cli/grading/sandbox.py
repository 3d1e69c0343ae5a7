"""The process that math-verify runs in: reads a pair of expressions per line, writes a verdict per line.

`grader.py` starts it by this file's path; it imports nothing of this package. Each pair is compared in a fork with little time
and memory, which may not evaluate text as code, start processes, write files or use the network. So a pair that computes for
ever costs one fork, and no verdict depends on earlier ones. The reader must expect that this process dies at any moment.
Knows no problem, no model and no file.

A request is the JSON list [number, gold, answer]; a verdict is [number, word], with one of `WORDS`, or "killed" for a fork that
was ended from outside or by the wall clock. The first line says "ready".
Usage: python sandbox.py PROCESSOR_SECONDS WALL_CLOCK_SECONDS BYTES
"""

import contextlib
import json
import logging
import os
import re
import resource
import signal
import sys
from typing import Any, NoReturn

WORDS = ("equal", "different", "gold unread", "no memory", "failed", "late")
_FIRST_STATUS = 100  # the exit status that means the first of them
_SIGNALED = {signal.SIGPROF: "late", signal.SIGALRM: "killed", signal.SIGKILL: "killed"}  # the first two: the timers below
_REFUSED = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.", "socket.", "shutil.", "ctypes.")
_DECIMALS = 12  # places to which a decimal must agree with a number such as \\sqrt{2}
_PRECISION = 30
_CAPITAL = re.compile(r"(\\[a-zA-Z]+)|([A-DF-Z])(?! ?_)")  # math-verify reads E as Euler's number
_FIRST_PAIRS = (("\\sqrt{8}", "2\\sqrt{2}"), ("y=2x", "2y=4x"), ("(0,1)", "0<x<1"), ("x^2-1", "(x+1)(x-1)"))
"""Compared before any request, so that SymPy finishes its late imports; some of those evaluate its own text."""


def main() -> None:
    """Answers requests until the input ends."""
    verdicts = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):  # whatever is printed is no verdict
        os.dup2(nowhere, stream)
    sys.dont_write_bytecode = True
    seconds, wall_seconds, memory = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]) + _address_space()
    judge = Judge()
    _write(verdicts, "ready")
    for line in sys.stdin.buffer:
        number, gold, answer = json.loads(line)
        child = os.fork()
        if child == 0:
            _end_with_verdict(judge, gold, answer, seconds, wall_seconds, memory)
        _write(verdicts, [number, _word(os.waitpid(child, 0)[1])])


def _write(stream: int, message: object) -> None:
    os.write(stream, json.dumps(message).encode() + b"\n")


def _address_space() -> int:
    """Bytes that this process has mapped; 0 if the system does not say."""
    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[0]) * resource.getpagesize()
    return 0


def _end_with_verdict(judge: "Judge", gold: str, answer: str, seconds: float, wall_seconds: float, memory: int) -> NoReturn:
    """Ends this fork with the status that means the verdict, or by a timer."""
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, wall_seconds)
        with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        sys.addaudithook(_refuse)
        os._exit(_FIRST_STATUS + WORDS.index(judge.verdict(gold, answer)))
    finally:
        os._exit(1)


def _word(status: int) -> str:
    if os.WIFSIGNALED(status):
        return _SIGNALED.get(signal.Signals(os.WTERMSIG(status)), "failed")
    index = os.WEXITSTATUS(status) - _FIRST_STATUS
    return WORDS[index] if 0 <= index < len(WORDS) else "failed"


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: Python calls it before each sensitive operation."""
    if event == "compile":  # a module's text is compiled under its path, the text of an eval under <string>
        is_refused = str(arguments[1]).startswith("<")
    elif event == "open":
        is_refused = isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    else:
        is_refused = event.startswith(_REFUSED)
    if is_refused:
        message = f"{event} is not allowed here"
        raise PermissionError(message)


class Judge:
    """math-verify, reading LaTeX only (its reader of plain text uses eval), with its known mistakes corrected."""

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
        if _is_misread(gold, answer):
            return "different"
        try:
            return self._compare(*_apart(_both_signs(gold), _both_signs(answer)))
        except MemoryError:
            return "no memory"
        # SymPy raises these if it cannot decide, and the hook above if it is not allowed to.
        except (ArithmeticError, TypeError, ValueError, NotImplementedError, RecursionError, PermissionError):
            return "failed"

    def _compare(self, gold: str, answer: str) -> str:
        wanted, given = self._read(gold), self._read(answer)
        if wanted is None:
            return "gold unread"
        given = self._as_solutions(given) if isinstance(wanted, self._sympy.Union | self._sympy.Interval) else given
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

    def _as_solutions(self, value: Any) -> Any:
        """The set that solves one of several inequalities: `x < 2 \\text{ or } x > 3`."""
        parts = value.args if isinstance(value, self._sympy.FiniteSet) else ()
        is_one_of = bool(parts) and all(isinstance(part, self._sympy.Rel | self._sympy.And) for part in parts)
        return self._sympy.Union(*(part.as_set() for part in parts)) if is_one_of else value

    def _read_number(self, text: str, **_: object) -> Any:
        """Replaces SymPy's parser, which uses eval; math-verify calls it for numbers only."""
        text = text.strip()
        if not re.fullmatch(r"[0-9]+|[0-9]*\.[0-9]+|[0-9]+\.", text):
            raise ValueError(text)
        return self._sympy.Float(text) if "." in text else self._sympy.Integer(int(text))

    def _is_really_equal(self, gold: Any, answer: Any) -> bool:
        """Whether two values that math-verify finds equal are: it is wrong on equations without a real solution and tiny numbers."""
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


def _is_misread(gold: str, answer: str) -> bool:
    """Whether math-verify may find different expressions equal: numbers in a base; a set and a point or an interval."""
    both = gold, answer
    is_in_base = any(re.search("[0-9)] ?_", text) for text in both)
    is_set = any(re.fullmatch(r"\\\{[^()]*\\\}", text) for text in both)
    is_point = any(re.fullmatch(r"[(\[][^()\[\]]*[)\]]", text) for text in both)
    return is_in_base or (is_set and is_point)


def _both_signs(text: str) -> str:
    """`1 + x, 1 - x` for `1 \\pm x`, which math-verify reads only outside brackets."""
    return ", ".join(text.replace("\\pm", sign) for sign in "+-") if text.count("\\pm") == 1 else text


def _apart(gold: str, answer: str) -> tuple[str, str]:
    """Both texts; if a letter occurs as capital and small letter, with the capitals marked: math-verify reads R as r."""
    letters = set(re.sub(r"\\[a-zA-Z]+", "", gold + answer))
    if not any(letter.isupper() and letter.lower() in letters for letter in letters):
        return gold, answer
    marked = [_CAPITAL.sub(lambda found: found[1] or f"{found[2]}_{{9}}", text) for text in (gold, answer)]
    return marked[0], marked[1]


if __name__ == "__main__":
    main()
