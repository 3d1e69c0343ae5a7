"""Recognizes questions that the built-in models were trained on: the wordings of their exercises, with any numbers.

The wordings are sentences in which numbers, expressions, names and things are masked. `models/recipe/wordings.py` makes their
file. A question is known if each of its sentences is known, so exercises may also be combined in a way that was not trained.
"""

import functools
import json
import re
from collections.abc import Iterable

from arbitrage_cli.system.files import models_folder

WORDINGS = "builtin-wordings.json"

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_EXPRESSION = re.compile(r"\(\s*#\s*\)|# ?(?:[-+*/x×÷]|times) ?#")  # noqa: RUF001 - as people write
_LIST = re.compile(r"(#(?: _)?)(?:, #(?: _)?)+")
_SENTENCE_END = re.compile(r"(?<=[.?!])\s+")


class Wordings:
    """Known sentences. `words` are the names, pronouns, things and colours that are masked in them."""

    def __init__(self, words: Iterable[str], sentences: Iterable[str]) -> None:
        self._words = re.compile(rf"\b(?:{'|'.join(sorted(map(re.escape, words), key=len, reverse=True))})\b")
        self._sentences = frozenset(sentences)

    def know(self, question: str) -> bool:
        return all(sentence in self._sentences for sentence in self.sentences_of(question))

    def sentences_of(self, question: str) -> list[str]:
        """Return the masked sentences of a question, in which `#` is a number or an expression, and `_` a masked word."""
        text = _NUMBER.sub("#", self._words.sub("_", " ".join(question.lower().split())))
        found = 1
        while found:  # from the inside to the outside
            text, found = _EXPRESSION.subn("#", text)
        return [part.rstrip(" .?!=") for part in _SENTENCE_END.split(_LIST.sub(r"\1", text))]


@functools.cache
def built_in_wordings() -> Wordings:
    content = json.loads((models_folder() / WORDINGS).read_text(encoding="utf-8"))
    return Wordings(content["words"], content["sentences"])


def is_exercise(question: str) -> bool:
    return built_in_wordings().know(question)
