"""Converts a route such as `entropy@0.5` to the flow that solves a problem.

`parse_route` finds the policy (`policies.py`), `resolve_tau` converts presets such as `careful` to numbers (`presets.py`), and
`Route.flow` creates the flow (`arbitrage.py`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf

from arbitrage_cli.arbitrage import Flow, Scorer
from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.errors import UsageError, unknown
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.model_files.pairs import UNIVERSAL_ROUTER
from arbitrage_cli.numbers import formatting
from arbitrage_cli.routing.checker import Checker
from arbitrage_cli.routing.flows import FlowSettings
from arbitrage_cli.routing.policies import POLICIES, Policy, find_policy
from arbitrage_cli.routing.presets import ALWAYS, PRESETS, TauTable, parse_number
from arbitrage_cli.routing.router import Router
from arbitrage_cli.routing.thoughts import BUDGET
from arbitrage_cli.types import Fields, Trace, frozen

DEFAULT_TAU = "careful"
DRAFT_SOLUTIONS = 3  # that policy `agree` compares if there is no checker
QUICK_SOLUTIONS = 2  # the same if only the target thinks


@frozen
class Route:
    """A policy with its tau.

    `tau_name` is the preset or budget from which the tau was resolved. If `stops_early` is true, a drafted step may be
    escalated before its end.
    """

    policy: Policy
    tau: float | None = None
    tau_name: str | None = field(default=None, compare=False)
    stops_early: bool = field(default=False, compare=False)

    @property
    def name(self) -> str:
        """The name on the command line, such as `arbitrage@fast`."""
        return self.policy.name if self.tau is None else f"{self.policy.name}@{self.tau_name or formatting.exact(self.tau)}"

    @property
    def label(self) -> str:
        """The name in tables and messages, such as `arbitrage@fast (0.347)`, or `arbitrage@careful (escalates every step)`."""
        if self.tau is None or not self.tau_name:
            return self.name
        return f"{self.name} ({formatting.tau(self.tau) if self.tau else 'escalates every step'})"

    @property
    def escalates_every_step(self) -> bool:
        """Whether no score can be at or below tau, except for a probability of exactly 0."""
        return self.tau is not None and (self.tau == -inf or (self.policy.needs_router and self.tau <= ALWAYS))

    def flow(self, trace: Trace, seed: int, scorer: Scorer | Checker | None = None) -> Flow:
        """Return the flow that solves `trace`. Raises ValueError if a required tau, scorer or checker is missing."""
        make_scorer = self.policy.make_scorer
        return self.policy.make_flow(trace, self._settings(seed, make_scorer(seed) if make_scorer else scorer))

    def thoughts_tau(self, scorer: Scorer | Checker | None) -> float | None:
        """Return the tau for thinking steps. The result differs from `tau` if the router was not trained on thinking."""
        if self.tau is None or not isinstance(scorer, Scorer) or scorer.routes_thoughts:
            return self.tau
        return self._settings().thoughts_tau

    def _settings(self, seed: int = 0, helper: Scorer | Checker | None = None) -> FlowSettings:
        name = self.tau_name or ""
        budget = float(name[:-1]) / 100 if name.endswith("%") else BUDGET
        return FlowSettings(seed, self.tau, helper, self.stops_early, budget)


def stored_route(entry: Fields) -> Route:
    """Return the route of a policy in run.json or in the figures, or of a row."""
    tau = entry["tau"]
    return Route(POLICIES[entry["policy"]], None if tau is None else float(tau), entry["tau_name"])


# --- parsing

ParsedRoute = tuple[Policy, str | None]
"""A policy and its tau as text: a number, a preset, or a budget such as `30%`. None means the default tau."""


def parse_route(text: str) -> ParsedRoute:
    """Parse `POLICY` or `POLICY@TAU`. Raises UsageError if the policy is unknown or takes no tau."""
    name, at, tau = (part.strip() for part in text.partition("@"))
    policy = find_policy(name)
    if at and not policy.has_tau:
        raise UsageError(f"policy {name} has no tau", f"omit the tau: {name}", option="policy")
    return policy, tau if at else None


def parse_routes(text: str) -> list[ParsedRoute]:
    """Parse a list such as `target,logprob@0.2`. Raises UsageError if the list is empty or contains an invalid route."""
    parsed = [parse_route(part) for part in map(str.strip, text.split(",")) if part]
    if not parsed:
        raise UsageError("the list of policies is empty", "choose from: " + ", ".join(POLICIES), option="policy")
    return parsed


def preset_or_budget(policy: Policy, tau: str | None) -> str | None:
    """Return the preset or budget that the tau names, or None if the tau is a number."""
    name = tau or DEFAULT_TAU
    return name if policy.needs_router and (name in PRESETS or name.endswith("%")) else None


def accepts_tau(policy: Policy, tau: str | None) -> bool:
    return policy.has_tau and (policy.needs_router or not (tau in PRESETS or str(tau).endswith("%")))


# --- from a written tau to a number


@dataclass(frozen=True)
class AvailableRouter:
    """A router, its source, and the pair's token costs.

    The costs are measured on this machine or, if `is_priced` is true, the pair's prices. Presets and early stops depend on
    prices, but not on measured costs. Drafted steps are stopped early where this changes no text or, according to the
    router's table, saves time. `can_stop_early` is false if the draft is on a server. `check` contains the costs of a checker,
    if they are known.
    """

    router: Router | None
    source: str | None
    costs: PairCosts | None = None
    is_priced: bool = False
    can_stop_early: bool = True
    has_checker: bool = False
    check: UnitCosts | None = None

    @property
    def is_universal(self) -> bool:
        """Whether the router was trained on other pairs, so that the costs on its card do not apply to this pair."""
        return self.source == UNIVERSAL_ROUTER

    @cached_property
    def table(self) -> TauTable:
        """The table of taus with the times of this machine's costs or, if these are unknown, the card's costs.

        Its rows are those that the routes follow. The universal router stops no steps early, because that was not measured on
        this pair. Raises UsageError if there is no router.
        """
        table = TauTable.from_json(need_router(self.router).card.taus)
        card_costs = None if self.is_universal else table.costs
        table = replace(table, costs=card_costs)
        if self.is_universal or not self.can_stop_early:
            table = table.without_early_stops()
        by = self.costs if self.is_priced else card_costs
        is_other = self.is_priced or not self.can_stop_early  # than when the router was trained
        table = table.with_presets(by) if is_other else table.with_early_stops(by)
        return table.at_costs(self.costs or card_costs)

    @property
    def costs_of(self) -> str:
        """The source of the token costs that predict times."""
        return "this machine" if self.costs else "the router's card"

    def costs_for(self, routes: Iterable[Route]) -> str | None:
        """Return the costs on which presets are based, or None if no route is a preset."""
        by = "the pair's prices" if self.is_priced else "the router's card"
        return by if any(route.tau_name in PRESETS for route in routes) else None

    def stops_early(self, route: Route) -> bool:
        """Return whether a route stops drafted steps early."""
        if not route.policy.can_stop_early or not self.can_stop_early:
            return False
        if route.policy.has_growing_score:
            return True
        return route.tau is not None and self.table.stops_early(route.tau)


def need_router(router: Router | None) -> Router:
    if router is None:
        raise UsageError(
            "policy arbitrage needs a trained router, but these models or this task have no router",
            "use --router FILE.safetensors (train one with arbitrage collect and arbitrage train), or another --policy",
        )
    return router


def resolve_tau(policy: Policy, tau: str | None, available: AvailableRouter) -> float | None:
    """Return the tau as a number, or None if the policy has no tau. Raises UsageError if the tau is invalid."""
    if not policy.has_tau:
        return None
    if tau is None and policy.default_tau is not None:
        return policy.default_tau
    if policy.needs_router:
        resolved = available.table.resolve(DEFAULT_TAU if tau is None else tau)
    else:
        hint = f"use a number, inf or -inf for policy {policy.name}, such as {policy.name}@0.5"
        resolved = parse_number(str(tau), hint)
    if policy.max_score < resolved < inf:
        reason = f"tau {resolved:g} is above {policy.max_score:g}, the maximum of policy {policy.name}"
        raise UsageError(
            reason,
            "use a tau such as 0.5, or inf to never escalate; for a share of the steps, add a percent sign: 30%",
            option="tau",
        )
    return resolved


def make_route(policy: Policy, tau: str | None, available: AvailableRouter) -> Route:
    route = Route(policy, resolve_tau(policy, tau, available), preset_or_budget(policy, tau))
    return replace(route, stops_early=available.stops_early(route))


# --- routes for requests and chats


def selectable(
    *, has_router: bool, is_local: bool, compares_answers: bool, has_token_stats: bool = True, continues: bool = True
) -> list[str]:
    """Return the policies that users of a chat or a server can select.

    `is_local` is false if a model is on a server. `compares_answers` is true if answers can be compared.
    `has_token_stats` is false if the draft is on a server that sends no log-probabilities. `continues` is false if the models
    cannot continue each other's text.
    """
    return [
        policy.name
        for policy in POLICIES.values()
        if policy.reward is None
        and (has_router or not policy.needs_router)
        and (is_local or not policy.needs_local_models)
        and (compares_answers or not policy.compares_answers)
        and (has_token_stats or not policy.reads_token_stats)
        and (continues or not policy.routes_steps)
    ]


def refuse_in_conversation(policy: Policy, selectable: Sequence[str]) -> None:
    """Raise UsageError if a policy needs rewards, or if it compares answers and these policies do not include it."""
    if policy.reward or (policy.compares_answers and policy.name not in selectable):
        needs = "rewards, which are" if policy.reward else "whole solutions with a final answer, which are"
        raise UsageError(
            f"policy {policy.name} needs {needs} not available in a conversation",
            f"use one of: {', '.join(selectable)}",
            option="policy",
        )


class Menu:
    """The routes that a request or a chat turn can select by name. `default` is the route from the command line."""

    def __init__(
        self,
        default: Route,
        available: AvailableRouter,
        *,
        is_local: bool = True,
        compares_answers: bool = False,
        has_token_stats: bool = True,
        continues: bool = True,
    ) -> None:
        """Take the arguments of `selectable`. Raises UsageError if the default policy cannot be used in a conversation."""
        self.default = default
        self._available = available
        self._has_token_stats, self._continues = has_token_stats, continues
        self._policies = selectable(
            has_router=available.router is not None,
            is_local=is_local,
            compares_answers=compares_answers,
            has_token_stats=has_token_stats,
            continues=continues,
        )
        refuse_in_conversation(default.policy, self._policies)

    @property
    def names(self) -> list[str]:
        """The names to offer, without numeric taus and without baselines. The first name is the default policy."""
        offered = [name for name in self._policies if POLICIES[name].is_offered]
        presets = [f"{name}@{tau}" for name in offered if POLICIES[name].needs_router for tau in PRESETS]
        return list(dict.fromkeys([self.default.policy.name, *offered, *presets]))

    def find(self, name: str, kind: str = "model") -> Route:
        """Return the route with this name. Error messages call an unknown name a `kind`.

        Raises UsageError if the policy is unknown or not available here, or if the tau is invalid.
        """
        policy_name = name.partition("@")[0].strip()
        if policy_name not in POLICIES:
            raise unknown(kind, name, self.names)
        policy, tau = parse_route(name)
        if policy_name not in self._policies:
            refuse_in_conversation(policy, self._policies)
            if policy.needs_router:
                need_router(self._available.router)
            if policy.routes_steps and not self._continues:
                message = (
                    f"policy {policy_name} routes steps, but a model is behind a chat API, which writes whole solutions"
                )
                raise UsageError(message, f"use one of: {', '.join(self._policies)}", option="policy")
            if policy.reads_token_stats and not self._has_token_stats:
                message = f"policy {policy_name} needs log-probabilities, which the draft's server does not send"
                raise UsageError(message, f"use one of: {', '.join(self._policies)}", option="policy")
            raise UsageError(
                f"policy {policy_name} needs both models on this machine, but one of them is on a server",
                f"use one of: {', '.join(self._policies)}",
                option="policy",
            )
        if tau is None and policy is self.default.policy:
            return self.default
        return make_route(policy, tau, self._available)
