"""Proposes tokens that a model is likely to write next: those of a drafted step, of the draft's continuation, or looked up."""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

REJOIN = 2  # matching tokens in a row after which a text has rejoined its proposal

Source = Literal["drafted", "rejoined", "speculated", "lookup"]
"""`drafted`: the rejected step. `rejoined`: the rejected step after a difference. `speculated`: the draft's continuation."""


class Place(NamedTuple):
    """A position in a proposal, given by the numbers of remaining tokens and preceding matches.

    `confidences` contains the draft's probabilities of the remaining tokens, if the source is `speculated`.
    """

    num_left: int
    num_matched: int
    source: Source = "drafted"
    confidences: tuple[float, ...] = ()


class _Proposed:
    """Proposed tokens and the text's position in them."""

    def __init__(self, tokens: Sequence[int], source: Source, confidences: Sequence[float] = ()) -> None:
        self.tokens = list(tokens)
        self.source = source
        self._confidences = tuple(confidences)
        self.num_matched = 0
        self._next = 0

    @property
    def num_left(self) -> int:
        return len(self.tokens) - self._next

    def place(self, room: int) -> Place:
        num_left = max(0, min(self.num_left, room))
        return Place(num_left, self.num_matched, self.source, self._confidences[self._next : self._next + num_left])

    def upcoming(self, count: int) -> list[int]:
        return self.tokens[self._next : self._next + count]

    def follow(self, token: int) -> None:
        if self.upcoming(1) == [token]:
            self._next += 1
            self.num_matched += 1
        else:
            self._leave()

    def _leave(self) -> None:
        self._next = len(self.tokens)


class _Drafted(_Proposed):
    """A drafted step.

    Once the text differs from the step, nothing is proposed until the last `REJOIN` tokens of the text occur in the step. If
    these tokens occur several times, the position nearest to the text's length is used.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__(tokens, "drafted")
        self._written: list[int] = []

    def follow(self, token: int) -> None:
        if self.tokens:
            self._written.append(token)
            super().follow(token)

    def _leave(self) -> None:
        last = self._written[-REJOIN:]
        tokens = self.tokens
        length = len(self._written)
        ends = (end for end in range(REJOIN, len(tokens)) if tokens[end - REJOIN : end] == last)
        self._next = min(ends, key=lambda end: abs(end - length), default=len(tokens))
        self.num_matched = 0
        self.source = "rejoined"


class History(_Proposed):
    """Prompt lookup (arXiv 2304.04487): proposes the tokens that followed an earlier occurrence of the last two tokens.

    Rejected steps are included. Matching two tokens is enough, because the planner learns how the acceptance rate depends on
    the number of matches.
    """

    def __init__(self, tokens: Iterable[int]) -> None:
        super().__init__((), "lookup")
        self._after: dict[tuple[int, int], int] = {}  # the end of each pair's last occurrence
        self._extend(tokens)

    def follow(self, token: int) -> None:
        tokens = self.tokens
        length = len(self.tokens)
        matches = self._next < length and tokens[self._next] == token
        pair = (tokens[-1] if tokens else token, token)
        found = self._after.get(pair)
        self._after[pair] = length + 1
        tokens.append(token)
        if matches:
            self._next += 1
            self.num_matched += 1
        else:
            self._next, self.num_matched = (length + 1, 0) if found is None else (found, 2)

    def catch_up(self, unread: Sequence[int]) -> None:
        """Add the tokens that the model must prefill next, unless they are already included."""
        if self.tokens[-len(unread) :] != unread:
            self._extend(unread)

    def _extend(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self.follow(token)


def align(drafted: Iterable[tuple[int, float]], lengths: Iterable[int]) -> list[float]:
    """Return the probabilities of tokens of these lengths, from the lengths and probabilities of another model's tokens.

    The probability of a token is that of all drafted tokens that begin in it.
    """
    remaining = iter(drafted)
    begin = 0
    end = 0
    confidences: list[float] = []
    for length in lengths:
        end += length
        confidence = 1.0
        while begin < end and (token := next(remaining, None)):
            begin += token[0]
            confidence *= token[1]
        confidences.append(confidence)
    return confidences


class Proposal:
    """Proposes tokens from the drafted step while the text matches the step, then from the draft's continuation or `history`."""

    def __init__(self, tokens: Sequence[int] = (), history: History | None = None) -> None:
        self._drafted = _Drafted(tokens)
        self._speculated = _Proposed((), "speculated")
        self._history = history

    def __bool__(self) -> bool:
        return bool(self._history or self._drafted.tokens or self._speculated.num_left)

    def place(self, room: int) -> Place:
        return self._chosen.place(room)

    def upcoming(self, count: int) -> list[int]:
        return self._chosen.upcoming(count)

    def speculate(self, tokens: Sequence[int], confidences: Sequence[float]) -> None:
        """Propose the draft's continuation until the text differs from it or rejoins the drafted step."""
        self._speculated = _Proposed(tokens, "speculated", confidences)

    def follow(self, token: int) -> bool | None:
        """Add the next token of the text. Return whether the token was proposed, or None if nothing was proposed."""
        proposed = self._chosen.upcoming(1)
        self._drafted.follow(token)
        self._speculated.follow(token)
        if self._history:
            self._history.follow(token)
        if self._drafted.num_left:
            self._speculated = _Proposed((), "speculated")
        return proposed == [token] if proposed else None

    @property
    def _chosen(self) -> _Proposed:
        if self._speculated.num_left:
            return self._speculated
        return self._drafted if self._drafted.num_left or not self._history else self._history
