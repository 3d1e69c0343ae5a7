"""Recognizes questions that the built-in models were trained on: the wordings of their exercises, and their arithmetic.

The wordings are sentences in which numbers, calculations, names and things are masked. `models/recipe/wordings.py` makes
their file. A question is known if each of its sentences is known and no number in it is longer than in the exercises, so
exercises may also be combined in a way that was not trained. The limits of calculations are those of `models/recipe/generate.py`.
"""

import ast
import functools
import json
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction

from arbitrage_cli.system.files import models_folder
from arbitrage_cli.types import Problem, frozen

WORDINGS = "builtin-wordings.json"
UNKNOWN_QUESTION = (
    "the built-in models can only solve exercises like those in the data set builtin; this question is not one of them, so "
    "the answer is probably wrong"
)
UNKNOWN_CONTEXT = "the built-in models support neither system prompts nor earlier messages, so the answer is probably wrong"

MAX_CHARACTERS = 200  # of a calculation
MAX_OPERATIONS = 5
MAX_NUMBER = 99_999  # of a calculation, and of a product in it
MAX_DIVISOR = 25

_NUMBER = r"\d+(?:\.\d+)?"
_NUMBERS = re.compile(_NUMBER)
_FRACTIONS = re.compile(r"\d+/\d+(?= of )")
_SPACES = re.compile(r"(?<=\() | (?=\))")
_OPERATOR = r"[-+*/x×÷]|times"  # noqa: RUF001 - as people write
_CALCULATIONS = re.compile(rf"\(*{_NUMBER}(?:\)* ?(?:{_OPERATOR}) ?\(*{_NUMBER})+\)*")
_SIGNS = {"x": "*", "×": "*", "times": "*", "÷": "/"}  # noqa: RUF001 - as people write
_LIST = re.compile(r"(#(?: _)?)(?:, #(?: _)?)+")
_SENTENCE_END = re.compile(r"(?<=[.?!])\s+")


@frozen
class Digits:
    """The most digits that a number of a sentence has before and after its decimal point."""

    before: int = 0
    after: int = 0

    @classmethod
    def of(cls, number: str) -> "Digits":
        whole, _, rest = number.partition(".")
        return cls(len(whole), len(rest))

    def __or__(self, other: "Digits") -> "Digits":
        return Digits(max(self.before, other.before), max(self.after, other.after))


@frozen
class Sentence:
    """A sentence in which `#` is a number, `(#)` a calculation and `_` a masked word; its calculations, and its other numbers."""

    wording: str
    calculations: tuple[str, ...]
    numbers: tuple[str, ...]

    @property
    def digits(self) -> Digits:
        return functools.reduce(Digits.__or__, map(Digits.of, self.numbers), Digits())


class Wordings:
    """Known wordings, each with the most digits of its numbers. `words` are the names and things that are masked in them."""

    def __init__(self, words: Iterable[str], known: Mapping[str, Digits]) -> None:
        self._words = re.compile(rf"\b(?:{'|'.join(sorted(map(re.escape, words), key=len, reverse=True))})\b")
        self._known = known

    def know(self, question: str) -> bool:
        return all(map(self._knows, self.sentences_of(question)))

    def _knows(self, sentence: Sentence) -> bool:
        known = self._known.get(sentence.wording)
        return (
            known is not None
            and sentence.digits | known == known
            and all(Fraction(number) % Fraction(1, 4) == 0 for number in sentence.numbers)  # prices end in .25, .5 or .75
            and all(map(_is_trained, sentence.calculations))
        )

    def sentences_of(self, question: str) -> list[Sentence]:
        text = self._words.sub("_", _SPACES.sub("", " ".join(question.lower().split())))
        return list(map(_sentence, _SENTENCE_END.split(text)))


def _sentence(text: str) -> Sentence:
    text = _FRACTIONS.sub("#", text)
    calculations, text = _CALCULATIONS.findall(text), _CALCULATIONS.sub("(#)", text)
    numbers, text = _NUMBERS.findall(text), _NUMBERS.sub("#", text)
    return Sentence(_LIST.sub(r"\1", text).rstrip(" .?="), tuple(calculations), tuple(numbers))


def _is_trained(calculation: str) -> bool:
    """Return whether a calculation is within the limits of the exercises. Only then can it have been trained."""
    if len(calculation) > MAX_CHARACTERS:
        return False
    code = re.sub(_OPERATOR, lambda sign: _SIGNS.get(sign[0], sign[0]), calculation)
    try:
        tree = ast.parse(code, mode="eval")
    except SyntaxError:  # parentheses without their counterpart, or 007
        return False
    is_short = sum(isinstance(node, ast.BinOp) for node in ast.walk(tree)) <= MAX_OPERATIONS
    return is_short and _value(tree.body) is not None


def _value(node: ast.expr) -> int | None:
    """Return the value of a calculation, or None if the exercises have no such calculation."""
    match node:
        case ast.Constant(value=int(number)) if number <= MAX_NUMBER:
            return number
        case ast.BinOp(left=left, op=operator, right=right):
            a, b = _value(left), _value(right)
            return None if a is None or b is None else _result(a, operator, b)
    return None


def _result(left: int, operator: ast.operator, right: int) -> int | None:
    """Return the result of an operation, or None if the exercises have no such operation."""
    match operator:
        case ast.Add():
            return left + right
        case ast.Sub() if left >= right:
            return left - right
        case ast.Mult() if left * right <= MAX_NUMBER and (right < 100 or left < 10):
            return left * right
        case ast.Div() if 0 < right <= MAX_DIVISOR and left % right == 0:
            return left // right
    return None


@functools.cache
def built_in_wordings() -> Wordings:
    content = json.loads((models_folder() / WORDINGS).read_text(encoding="utf-8"))
    return Wordings(content["words"], {wording: Digits(*digits) for wording, digits in content["sentences"].items()})


def is_exercise(question: str) -> bool:
    return built_in_wordings().know(question)


def reasons_for_doubt(problem: Problem, default_system: str = "") -> list[str]:
    """Return why the built-in models probably cannot solve a problem. Without a prompt of its own, it has the default."""
    system = default_system if problem.system is None else problem.system
    has_context = bool(system or problem.turns)
    return [UNKNOWN_CONTEXT] * has_context + [UNKNOWN_QUESTION] * (not is_exercise(problem.question))
