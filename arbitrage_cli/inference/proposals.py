"""Proposals: what a model may be about to write."""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

REJOIN = 2  # tokens in a row that have to agree before a text that left its proposal counts as back in it

Source = Literal["drafted", "again", "speculated", "copied"]
"""Where the next proposed tokens come from: the drafted step; the drafted step after the text left it and came back; the draft's
continuation of the text that was written instead; or an earlier place of prompt and solution with the same two last tokens.
"""

SOURCES: tuple[Source, ...] = get_args(Source)


class Place(NamedTuple):
    """Where a text is in its proposal: how many proposed tokens are left, and how many matched in a row before them."""

    num_left: int
    num_matched: int
    source: Source = "drafted"


class _Proposed:
    """Proposed tokens, and where in them the text is."""

    source: Source

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self.tokens = list(tokens)
        self.num_matched = 0
        self._next = 0

    @property
    def num_left(self) -> int:
        return len(self.tokens) - self._next

    def upcoming(self, count: int) -> list[int]:
        """The next `count` tokens, or as many as there are."""
        return self.tokens[self._next : self._next + count]

    def follow(self, token: int) -> None:
        if self.upcoming(1) == [token]:
            self._next, self.num_matched = self._next + 1, self.num_matched + 1
        else:
            self._leave()

    def _leave(self) -> None:
        self._next = len(self.tokens)


class _Speculated(_Proposed):
    """The draft's continuation, until the text leaves it."""

    source: Source = "speculated"


class _Drafted(_Proposed):
    """A drafted step. Once the text leaves it, nothing is proposed until the text comes back: its last `REJOIN` tokens are found in
    the step too. Of several such places the one nearest to the text's own length counts.
    """

    source: Source = "drafted"

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__(tokens)
        self._written: list[int] = []

    def follow(self, token: int) -> None:
        if self.tokens:
            self._written.append(token)
            super().follow(token)

    def _leave(self) -> None:
        last, tokens, here = self._written[-REJOIN:], self.tokens, len(self._written)
        ends = (end for end in range(REJOIN, len(tokens)) if tokens[end - REJOIN : end] == last)
        self._next = min(ends, key=lambda end: abs(end - here), default=len(tokens))
        self.num_matched, self.source = 0, "again"


class History(_Proposed):
    """All tokens of one problem so far, rejected steps included: what followed the last two before may follow them again.

    Prompt lookup decoding, or LLMA (arXiv 2304.04487). Two tokens are enough, because how many matched is known to the planner, which
    learns from it how far a copy goes.
    """

    source: Source = "copied"

    def __init__(self, tokens: Iterable[int]) -> None:
        super().__init__()
        self._after: dict[tuple[int, int], int] = {}  # two tokens in a row, and where the last ones of them end
        self._extend(tokens)

    def follow(self, token: int) -> None:
        tokens, here = self.tokens, len(self.tokens)
        is_right = self._next < here and tokens[self._next] == token
        pair = (tokens[-1] if tokens else token, token)
        found = self._after.get(pair)
        self._after[pair] = here + 1
        tokens.append(token)
        if is_right:
            self._next, self.num_matched = self._next + 1, self.num_matched + 1
        else:
            self._next, self.num_matched = (here + 1, 0) if found is None else (found, 2)

    def catch_up(self, unread: Sequence[int]) -> None:
        """Take the tokens that the model has to read now, if they are not the latest ones anyway."""
        if self.tokens[-len(unread) :] != unread:
            self._extend(unread)

    def _extend(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self.follow(token)


class Proposal:
    """What a model may be about to write, next to what it does write, token by token.

    The first choice is a drafted step, until the text leaves it, and again once it comes back. In between there may be a
    continuation by the draft, or else a copy from the `history`.
    """

    def __init__(self, tokens: Sequence[int] = (), history: History | None = None) -> None:
        self._drafted, self._speculated, self._history = _Drafted(tokens), _Speculated(), history

    def __bool__(self) -> bool:
        """Whether anything can be proposed."""
        return bool(self._history or self._drafted.tokens or self._speculated.num_left)

    def place(self, room: int) -> Place:
        """Where the text is, if at most `room` tokens may be read."""
        chosen = self._chosen
        return Place(max(0, min(chosen.num_left, room)), chosen.num_matched, chosen.source)

    def upcoming(self, count: int) -> list[int]:
        return self._chosen.upcoming(count)

    def speculate(self, tokens: Sequence[int]) -> None:
        """Propose these next, until the text leaves them or comes back to the drafted step, which is likelier."""
        self._speculated = _Speculated(tokens)

    def follow(self, token: int) -> bool | None:
        """Take the next token of the text. Returns whether it was the proposed one; None if none was proposed."""
        proposed = self._chosen.upcoming(1)
        self._drafted.follow(token)
        self._speculated.follow(token)
        if self._history:
            self._history.follow(token)
        if self._drafted.num_left:
            self._speculated = _Speculated()
        return proposed == [token] if proposed else None

    @property
    def _chosen(self) -> _Proposed:
        if self._speculated.num_left:
            return self._speculated
        return self._drafted if self._drafted.num_left or not self._history else self._history
