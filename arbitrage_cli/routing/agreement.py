"""Whether a drafted step and the target's conclude the same: evidence about a router that needs no answer and no reward.

Compared are boxed answers, else the numbers that the question does not have, else words. Code is compared by its syntax tree,
whatever its names are.
"""

import ast
import re
import warnings

from arbitrage_cli.routing.equations import numbers_in

SIMILAR = 0.5  # the share of the words of two steps that both have

_BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")
_WORD = re.compile(r"[^\W\d_]+")
_NAMES = ("id", "name", "arg", "attr", "asname")  # fields of a syntax tree


def agree(question: str, drafted: str, written: str, *, of_code: bool = False) -> bool:
    """Whether two steps that continue the same solution conclude the same."""
    if of_code:
        return _shape(drafted) == _shape(written)
    boxed = [_BOXED.findall(text) for text in (drafted, written)]
    if all(boxed):
        return bool(_answer(boxed[0][-1]) == _answer(boxed[1][-1]))
    known = {*numbers_in(question)}
    new = [{*numbers_in(text)} - known for text in (drafted, written)]
    if any(new):
        return new[0] == new[1]
    words = [{*_WORD.findall(text.lower())} for text in (drafted, written)]
    return len(words[0] & words[1]) >= SIMILAR * len(words[0] | words[1])


def _answer(text: str) -> object:
    """A boxed answer by its numbers, or else as a text without spaces."""
    return numbers_in(text) or "".join(text.split())


def _shape(code: str) -> str:
    """A program's syntax tree without names; its words if it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it parses
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return " ".join(code.split())
    for node in ast.walk(tree):
        for field in _NAMES:
            if isinstance(getattr(node, field, None), str):
                setattr(node, field, "_")
    return ast.dump(tree)
