"""Puts results that become ready in any order into the order of their problems."""

from collections import deque
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class InOrder(Generic[T]):
    """Holds results until all earlier results are ready. Their order is that of `expect`."""

    def __init__(self) -> None:
        self._expected: deque[Hashable] = deque()
        self._held: dict[Hashable, T] = {}

    def expect(self, key: Hashable) -> None:
        self._expected.append(key)

    def put(self, key: Hashable, result: T) -> None:
        self._held[key] = result

    def ready(self) -> Iterator[T]:
        """Yield and remove the results that precede the first unfinished problem."""
        while self._expected and self._expected[0] in self._held:
            yield self._held.pop(self._expected.popleft())

    def rest(self) -> Iterator[T]:
        """Yield all remaining results in order."""
        yield from (self._held[key] for key in self._expected if key in self._held)
