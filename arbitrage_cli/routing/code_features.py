"""A drafted step of a program as numbers: what no log-probability knows of it.

Whether the program so far can be parsed, which names it uses, what is open, and how sure the draft was of its code, comments and
strings aside. Nothing of a program is ever run: it is only parsed, and only if it is short and not deep. Knows no head and no label.
"""

import ast
import builtins
import keyword
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate

from arbitrage_cli.types import Step, Trace

CODE_FEATURES: tuple[str, ...] = (
    "code_in_block",  # the step begins inside of a block of code
    "code_ends_block",
    "code_is_wrong",  # the program up to here cannot be parsed, whatever follows
    "code_is_incomplete",
    "code_open_brackets",
    "code_indent",
    "code_dedent",  # from the line before the step to its last line
    "code_lines",
    "code_comment_lines",
    "code_repeated_lines",  # that the problem or the steps before have too
    "code_new_names",  # neither defined before nor in the step
    *(f"code_{word}" for word in ("return", "loop", "branch", "call", "definition", "import")),
    *(f"code_sure_{name}" for name in ("min", "2nd_min", "sum")),  # log-probabilities without comments and strings
    *(f"code_name_{name}" for name in ("min", "2nd_min")),  # those of names alone
    "code_line_start_min",  # and of the first tokens of lines
)

_AS_TYPED = ast.PyCF_ONLY_AST | 0x200 | 0x4000
"""Parse only, and as at a prompt: what may go on is incomplete, not wrong. The names of the last two flags are in `codeop`."""

MAX_CHARACTERS = 8000  # of a program, and of a step; what is more is not read
MAX_DEPTH = 50  # of its brackets
LEAST_LOGPROB = -30.0

_FENCE = re.compile(r"^[ \t]*```[^\n]*\n?", re.MULTILINE)
_ASIDE = re.compile(
    r'#[^\n]*|"""(?:.|\n)*?(?:"""|\Z)|\'\'\'(?:.|\n)*?(?:\'\'\'|\Z)|"(?:\\.|[^"\\\n])*"?|\'(?:\\.|[^\'\\\n])*\'?'
)
_NAME = re.compile(r"(?<![\w.])[^\W\d]\w*")
_BOUND = re.compile(
    r"\bdef\s+(\w+\s*\([^)]{0,400})|\b(?:class|import|as|for|lambda)\s+([^:=()\n]{1,80})|([\w, ]{1,80}?)[-+*/%|&^]{0,3}=(?!=)"
)
_LINE_START = re.compile(r"^[^\S\n]*\S", re.MULTILINE)
_KNOWN = frozenset({*keyword.kwlist, *dir(builtins), "self"})
_WORDS = tuple(
    re.compile(pattern)
    for pattern in (
        r"\breturn\b",
        r"\b(?:for|while)\b",
        r"\b(?:if|elif|else)\b",
        r"\w\(",
        r"\b(?:def|class)\b",
        r"\bimport\b",
    )
)


def code_features(trace: Trace, draft: Step) -> list[float]:
    """The next step of `trace` as finite numbers in the order of `CODE_FEATURES`. ValueError without token statistics."""
    text = draft.text if draft.stop != "early" else draft.text[: draft.text.rfind("\n") + 1]  # half a line says little
    before, in_block = _program(trace.text)
    step, ends_block = _code_of(text[:MAX_CHARACTERS], in_block=in_block)
    return [
        in_block,
        ends_block,
        *_of_program(before, step),
        *_of_lines(trace, before, step),
        *_of_words(step),
        *_of_tokens(draft),
    ]


# --- the program


@lru_cache(maxsize=1 << 8)
def _program(text: str) -> tuple[str, bool]:
    """The code in a text, and whether its last block is still open. Without a fence there is none."""
    parts = _FENCE.split(text)
    return "".join(parts[1::2])[-MAX_CHARACTERS:], len(parts) % 2 == 0


def _code_of(text: str, *, in_block: bool) -> tuple[str, bool]:
    """The code of a step, and whether it ends a block."""
    parts = _FENCE.split(text)
    return "".join(parts[not in_block :: 2]), in_block and len(parts) > 1


def _of_program(before: str, step: str) -> Iterator[float]:
    whole = before + step
    state = _parsed(whole)
    yield state == "wrong"
    yield state == "incomplete"
    yield _depth(whole)
    last, previous = _last_line(step), _last_line(before)
    yield _indent(last)
    yield max(0.0, _indent(previous) - _indent(last)) if last else 0.0


@lru_cache(maxsize=1 << 8)
def _parsed(program: str) -> str:
    """Whether a program is whole, incomplete or wrong, as Python's parser sees it; "unknown" if it is too long or too deep."""
    if len(program) > MAX_CHARACTERS or _depth(program) > MAX_DEPTH:
        return "unknown"
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(program, "", "exec", _AS_TYPED)
    except SyntaxError as error:
        return "incomplete" if "incomplete input" in str(error) else "wrong"
    except (ValueError, MemoryError, RecursionError):  # a NUL; too deep
        return "unknown"
    return "whole"


def _depth(program: str) -> int:
    """How many brackets are open at the end."""
    plain = _ASIDE.sub("", program)
    return max(0, sum(map(plain.count, "([{")) - sum(map(plain.count, ")]}")))


def _last_line(code: str) -> str:
    return next((line for line in reversed(code.splitlines()) if line.strip()), "")


def _indent(line: str) -> float:
    expanded = line.expandtabs(4)
    return (len(expanded) - len(expanded.lstrip())) / 4


# --- lines, names and words


def _of_lines(trace: Trace, before: str, step: str) -> Iterator[float]:
    lines = [line.strip() for line in step.splitlines() if line.strip()]
    seen = {line.strip() for line in (trace.problem.question + "\n" + before).splitlines()}
    yield len(lines)
    yield sum([line.startswith("#") for line in lines])
    yield sum([line in seen for line in lines])
    known = _KNOWN | _names(trace.problem.question) | _names(before) | _bound(step)
    yield len(_names(step) - known)


@lru_cache(maxsize=1 << 8)
def _names(code: str) -> frozenset[str]:
    """The names in a text, attributes and what is in comments and strings left out."""
    return frozenset(_NAME.findall(_ASIDE.sub(" ", code)))


def _bound(code: str) -> frozenset[str]:
    """Names to which the code gives a value, or may: what is left of `=`, and what follows `def`, `for`, `import`, `as`."""
    return frozenset(
        name for found in _BOUND.findall(_ASIDE.sub(" ", code)) for part in found for name in _NAME.findall(part)
    )


def _of_words(step: str) -> Iterator[float]:
    plain = _ASIDE.sub(" ", step)
    for word in _WORDS:
        yield len(word.findall(plain))


# --- tokens


def _of_tokens(draft: Step) -> Iterator[float]:
    """The least sure tokens: of the code without comments and strings, of names, and of the beginnings of lines."""
    token_stats = draft.known_token_stats
    pieces = token_stats.pieces or ()
    text = "".join(pieces)
    is_aside = bytearray(len(text))
    for match in _ASIDE.finditer(text):
        is_aside[match.start() : match.end()] = b"\1" * len(match[0])
    begins_line = {match.end() - 1 for match in _LINE_START.finditer(text)}
    sure: list[float] = []
    names: list[float] = []
    line_starts: list[float] = []
    for end, piece, logprob in zip(accumulate(map(len, pieces)), pieces, token_stats.log_probabilities, strict=False):
        place = end - len(piece.lstrip())  # of its first visible character
        if place == end or is_aside[place]:
            continue
        value = max(LEAST_LOGPROB, logprob)
        sure.append(value)
        if text[place].isalpha() or text[place] == "_":
            names.append(value)
        if place in begins_line:
            line_starts.append(value)
    yield from _lowest(sorted(sure))
    yield math.fsum(sure)
    yield from _lowest(sorted(names))
    yield min(line_starts, default=0.0)


def _lowest(ordered: Sequence[float]) -> tuple[float, float]:
    """The two lowest values; 0, which is certain, for one that there is not."""
    padded = [*ordered[:2], 0.0, 0.0]
    return padded[0], padded[1]
