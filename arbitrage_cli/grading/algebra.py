"""math-verify: whether two expressions are equal. It runs in a child process (`system.child`), in a fork for each comparison.

math-verify computes with what a model wrote, so the fork may not evaluate text as code, start processes, write files or use the
network.
"""

import logging
import os
import re
import sys
from collections.abc import Callable
from typing import Any

MAKE = "arbitrage_cli.grading.algebra:load"
_REFUSED = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.", "socket.", "shutil.", "ctypes.")
_DECIMALS = 12  # places to which a decimal must agree with a number such as \\sqrt{2}
_PRECISION = 30
_CAPITAL = re.compile(r"(\\[a-zA-Z]+)|([A-DF-Z])(?! ?_)")  # math-verify reads E as Euler's number
_FIRST_PAIRS = (("\\sqrt{8}", "2\\sqrt{2}"), ("y=2x", "2y=4x"), ("(0,1)", "0<x<1"), ("x^2-1", "(x+1)(x-1)"))
"""Compared before any request, so that SymPy finishes its late imports; some of those evaluate its own text."""


def load() -> Callable[[str, str], str]:
    """Import the libraries; the function compares a gold answer with another: equal, different, gold unread or failed."""
    sys.dont_write_bytecode = True
    algebra = Algebra()

    def compared(gold: str, answer: str) -> str:
        sys.addaudithook(_refuse)
        return algebra.verdict(gold, answer)

    return compared


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


class Algebra:
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
        """As `load` says. MemoryError."""
        if _is_misread(gold, answer):
            return "different"
        try:
            return self._compare(*_apart(_both_signs(gold), _both_signs(answer)))
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
