"""The routes that a request, or a turn of a chat, may ask for by name. Loads nothing."""

from arbitrage_cli.errors import UsageError, unknown
from arbitrage_cli.routing.choice import AvailableHead, make_route
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import Route, parse_route
from arbitrage_cli.routing.thresholds import NAMES


class Menu:
    """What can be asked for. `usual` is the route of the command line: also what its policy stands for if it is named without a tau."""

    def __init__(
        self, usual: Route, available: AvailableHead, *, early_stop: bool | None = None, speculates: bool = True
    ) -> None:
        """`early_stop` is what the command line says. UsageError if the usual policy cannot be served.

        `speculates`: both models are here, so policy speculative can be asked for.
        """
        self.usual = usual
        self._available, self._early_stop = available, early_stop
        self._policies = [
            one.name
            for one in POLICIES.values()
            if one.reward is None
            and not (one.needs_head and available.head is None)
            and (speculates or one.name != "speculative")
        ]
        if usual.policy.name not in self._policies:
            raise UsageError(
                f"policy {usual.policy.name} needs the rewards of steps, and a conversation has none",
                f"give one of: {', '.join(self._policies)}",
                option="policy",
            )

    @property
    def names(self) -> list[str]:
        """The usual policy first; of taus only those with a name."""
        taus = [f"{name}@{tau}" for name in self._policies if POLICIES[name].needs_head for tau in NAMES]
        return list(dict.fromkeys([self.usual.policy.name, *self._policies, *taus]))

    def find(self, name: str) -> Route:
        """What a name stands for. UsageError."""
        if name.partition("@")[0] not in self._policies:
            raise unknown("model", name, self.names)
        policy, tau = parse_route(name)
        if tau is None and policy is self.usual.policy:
            return self.usual
        return make_route(policy, tau, self._available, early_stop=self._early_stop)
