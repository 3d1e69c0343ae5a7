"""Grades mathematical solutions: answers that are not equal as text are compared by math-verify.

math-verify runs in a child process with limits, because an answer such as `9^{9^{9^9}}` would take forever. The process may
not evaluate code, write files or use the network.
"""

import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from typing import Any

from arbitrage_cli.errors import ProblemError
from arbitrage_cli.problems.answers import IN_BOX, compare, final_answer, gold_answer, shown
from arbitrage_cli.system.child import Child, ChildError
from arbitrage_cli.types import Fields, Grade

RULES_VERSION = 5  # incremented whenever a change may affect grades

# Outcomes that decide nothing, but that a retry would not change
_UNDECIDED: Mapping[str, str] = {
    "unreadable gold": "math-verify cannot read the gold answer",
    "memory": "math-verify ran out of memory",
    "failed": "math-verify failed",
    "crash": "math-verify failed",
    "time": "math-verify timed out",
}


def grader_version() -> str:
    """Return the versions of the rules and libraries that grades depend on."""
    names = ("math-verify", "latex2sympy2_extended", "sympy")
    return ", ".join([f"rules {RULES_VERSION}", *(f"{name} {version(name)}" for name in names)])


class MathGrader(AbstractContextManager["MathGrader"]):
    """Grades answers. `seconds` and `memory` limit each comparison by math-verify as described in `Child`."""

    def __init__(self, *, seconds: float = 2.5, memory: int = 300 << 20) -> None:
        self._child = Child("arbitrage_cli.problems.math_grader:load", seconds=seconds, memory=memory)

    def __exit__(self, *error: object) -> None:
        self._child.close()

    def grade(self, text: str, gold: Fields) -> Grade:
        """Grade a solution's final answer. Raises ProblemError if the child process is killed twice."""
        found = final_answer(text)
        expected = gold_answer(gold)
        if expected is None:
            return Grade("unscored", found.answer, "no gold answer in the data set")
        if found.answer is None:
            return Grade("incorrect", None, f"no answer found: {found.how}")
        comparison = compare(expected, found.answer)
        is_equal = comparison.is_equal
        if is_equal is None:
            outcome = self._ask(comparison.gold, comparison.answer)
            if outcome in _UNDECIDED:
                return Grade("unscored", found.answer, f"grader: {_UNDECIDED[outcome]}")
            is_equal = outcome == "equal"
        place = "" if found.how == IN_BOX else f"no \\boxed{{}}, {found.how}: "
        sign = "=" if is_equal else "is not"
        explanation = f"{place}{shown(found.answer)} {sign} {shown(expected)} ({comparison.rule})"
        return Grade("correct" if is_equal else "incorrect", found.answer, explanation)

    def _ask(self, gold: str, answer: str) -> str:
        try:
            return str(self._child(gold, answer))
        except ChildError as error:
            if error.cause != "machine":
                return error.cause
            raise ProblemError(f"cannot grade the answer: math-verify: {error}", "rerun the command") from error


# --- in the child process

_REFUSED = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.", "socket.", "shutil.", "ctypes.")
_DECIMALS = 12  # decimal places that must agree with an exact number such as \\sqrt{2}
_PRECISION = 30
_CAPITAL = re.compile(r"(\\[a-zA-Z]+)|([A-DF-Z])(?! ?_)")  # E is Euler's number in math-verify
# Compared before the first request, because some of SymPy's lazy imports evaluate text
_WARM_UP_PAIRS = (("\\sqrt{8}", "2\\sqrt{2}"), ("y=2x", "2y=4x"), ("(0,1)", "0<x<1"), ("x^2-1", "(x+1)(x-1)"))


def load() -> Callable[[str, str], str]:
    sys.dont_write_bytecode = True
    algebra = Algebra()

    def compare_safely(gold: str, answer: str) -> str:
        sys.addaudithook(_refuse)
        return algebra.compare(gold, answer)

    return compare_safely


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "compile":  # a module is compiled under its path, text for eval under <string>
        is_refused = str(arguments[1]).startswith("<")
    elif event == "open":
        is_refused = isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    else:
        is_refused = event.startswith(_REFUSED)
    if is_refused:
        raise PermissionError(event)


class Algebra:
    """Corrects known errors of math-verify. Only LaTeX is parsed, because the plain-text parser uses eval."""

    def __init__(self) -> None:
        import sympy
        from math_verify import LatexExtractionConfig, LatexNormalizationConfig, parse, verify
        from sympy.parsing import sympy_parser

        logging.disable()
        self._sympy = sympy
        self._parse = parse
        self._verify = verify
        latex = LatexNormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last")
        self._extraction = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=latex)]
        for gold, answer in _WARM_UP_PAIRS:
            self._compare(gold, answer)
        sympy_parser.parse_expr = self._parse_number

    def compare(self, gold: str, answer: str) -> str:
        if _is_misread(gold, answer):
            return "different"
        try:
            return self._compare(*_mark_capitals(_expand_signs(gold), _expand_signs(answer)))
        # SymPy raises these if it cannot decide; the audit hook raises PermissionError.
        except (ArithmeticError, TypeError, ValueError, NotImplementedError, RecursionError, PermissionError):
            return "failed"

    def _compare(self, gold: str, answer: str) -> str:
        expected, found = self._read(gold), self._read(answer)
        if expected is None:
            return "unreadable gold"
        if isinstance(expected, self._sympy.Union | self._sympy.Interval):
            found = self._as_solutions(found)
        options = {"float_rounding": _DECIMALS, "allow_set_relation_comp": True, "timeout_seconds": None}
        is_equal = found is not None and self._verify(expected, found, **options)
        is_percentage = "%" in gold + answer  # math-verify compares 25% with both 25 and 1/4
        is_equal = is_equal and (is_percentage or self._is_really_equal(expected, found))
        return "equal" if is_equal else "different"

    def _read(self, text: str) -> Any:
        found = self._parse(
            f"\\boxed{{{text}}}",
            extraction_config=self._extraction,
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=None,
        )
        return found[0] if found else None

    def _as_solutions(self, value: Any) -> Any:
        """Convert alternatives such as `x < 2 \\text{ or } x > 3` to their solution set."""
        parts = value.args if isinstance(value, self._sympy.FiniteSet) else ()
        are_relations = bool(parts) and all(isinstance(part, self._sympy.Rel | self._sympy.And) for part in parts)
        return self._sympy.Union(*(part.as_set() for part in parts)) if are_relations else value

    def _parse_number(self, text: str, **_: object) -> Any:
        """Convert a number. Replaces SymPy's parser, which uses eval. math-verify calls this parser only for numbers."""
        text = text.strip()
        if not re.fullmatch(r"[0-9]+|[0-9]*\.[0-9]+|[0-9]+\.", text):
            raise ValueError(text)
        return self._sympy.Float(text) if "." in text else self._sympy.Integer(int(text))

    def _is_really_equal(self, gold: Any, answer: Any) -> bool:
        """Reject false matches by math-verify between tiny numbers and between equations without real solutions."""
        sympy = self._sympy
        if any(isinstance(side, sympy.Eq) for side in (gold, answer)):
            if not all(isinstance(side, sympy.Eq) for side in (gold, answer)):
                return False
            factor = sympy.simplify((gold.lhs - gold.rhs) / (answer.lhs - answer.rhs))
            return bool(factor.is_number and factor.is_finite and not factor.is_zero)
        if not all(isinstance(side, sympy.Expr) and side.is_number for side in (gold, answer)):
            return True
        difference, size = (abs(sympy.N(value, _PRECISION)) for value in (gold - answer, gold))
        return bool(difference <= size * sympy.Float(10) ** -_DECIMALS)


def _is_misread(gold: str, answer: str) -> bool:
    """Return whether math-verify would misread the answers.

    math-verify misreads numbers with a base, and a set beside a point or interval.
    """
    both = gold, answer
    has_base = any(re.search("[0-9)] ?_", text) for text in both)
    has_set = any(re.fullmatch(r"\\\{[^()]*\\\}", text) for text in both)
    has_point = any(re.fullmatch(r"[(\[][^()\[\]]*[)\]]", text) for text in both)
    return has_base or (has_set and has_point)


def _expand_signs(text: str) -> str:
    """Return `1 + x, 1 - x` for `1 \\pm x`, because math-verify supports the sign only outside brackets."""
    return ", ".join(text.replace("\\pm", sign) for sign in "+-") if text.count("\\pm") == 1 else text


def _mark_capitals(gold: str, answer: str) -> tuple[str, str]:
    """Mark capital letters if a letter occurs in both cases, because math-verify does not distinguish `R` from `r`."""
    letters = set(re.sub(r"\\[a-zA-Z]+", "", gold + answer))
    if not any(letter.isupper() and letter.lower() in letters for letter in letters):
        return gold, answer
    marked = [_CAPITAL.sub(lambda found: found[1] or f"{found[2]}_{{9}}", text) for text in (gold, answer)]
    return marked[0], marked[1]
