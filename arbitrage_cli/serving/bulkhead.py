"""Keeps slots free for requests that do not need a server that is slow or down.

A running request holds its slot, because the slot holds its KV cache.
"""

from collections import Counter
from collections.abc import Callable, Collection

from arbitrage_cli.routing.policies import Policy

SPARE = 2  # slots that no single server may take


class Bulkhead:
    """Counts the running requests that need a server.

    At most `concurrency - SPARE`, but at least one, may need the same server. `servers_of` returns the servers that a policy
    needs. A server that every policy needs has no limit, because no other request could use the slots.
    """

    def __init__(
        self,
        concurrency: int = 1,
        servers_of: Callable[[Policy], Collection[str]] = lambda policy: (),
        unlimited: Collection[str] = (),
    ) -> None:
        self._most = max(1, concurrency - SPARE)
        self._servers_of = servers_of
        self._unlimited = unlimited
        self._running: Counter[str] = Counter()

    def admits(self, policy: Policy) -> bool:
        return all(self._running[server] < self._most for server in self._limited(policy))

    def enter(self, policy: Policy) -> None:
        self._running.update(self._limited(policy))

    def leave(self, policy: Policy) -> None:
        self._running.subtract(self._limited(policy))

    def _limited(self, policy: Policy) -> list[str]:
        return [server for server in self._servers_of(policy) if server not in self._unlimited]
