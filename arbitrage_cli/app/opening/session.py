"""The session of a command: its plan and its open models. Describes the solutions that they write."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import Protocol

from arbitrage_cli.app.deciding.gather import machine_facts
from arbitrage_cli.app.deciding.plan import Plan
from arbitrage_cli.app.deciding.prepare import warn_of_load
from arbitrage_cli.app.opening.open_models import OpenModels
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.arbitrage import Flow, Scorer
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.model_files.pairs import is_built_in
from arbitrage_cli.problems.exercises import reasons_for_doubt
from arbitrage_cli.problems.tasks import Grader
from arbitrage_cli.routing.checker import Checker
from arbitrage_cli.routing.policies import Policy
from arbitrage_cli.routing.route import DRAFT_SOLUTIONS, QUICK_SOLUTIONS, Menu, Route, need_router
from arbitrage_cli.runs.records import Explain, RunInfo
from arbitrage_cli.runs.run import MACHINE
from arbitrage_cli.system.machine import default_threads
from arbitrage_cli.types import WRITING, Json, ModelRole, Problem, RoleLimits, Trace

log = logging.getLogger("arbitrage.session")


class OpenSession(Protocol):
    """Opens the session of a command."""

    def __call__(
        self,
        display: Display,
        *,
        max_concurrency: int | None = None,
        cost_seconds: float | None = None,
        earlier: Plan | None = None,
    ) -> AbstractContextManager["Session"]:
        """Make the plan, or add models to that of an `earlier` session, and open a session whose models are not loaded yet.

        At most `max_concurrency` problems are solved at once. Costs are measured in at most `cost_seconds`.
        """


class Session:
    """A command's plan, and its models, which `load` opens."""

    def __init__(self, plan: Plan, models: OpenModels, display: Display) -> None:
        self.plan, self.models, self.display = plan, models, display
        self.decided, self.routes, self.task, self.router = plan.setup, plan.routes, plan.task, plan.router
        self.limits = self.decided.settings.limits
        self.concurrency = models.concurrency
        self._stack = contextlib.ExitStack()

    @property
    def route(self) -> Route:
        return self.routes[0]

    def close(self) -> None:
        self._stack.close()
        self.models.close()

    def load(self) -> None:
        self.models.load([route.policy for route in self.routes], self.display)
        warn_of_load(self.models.cores, self.display)
        self._warn_of_another_pair()

    @property
    def lacks_checker(self) -> bool:
        """Whether the checker's server cannot be used. Only `serve` starts without its checker."""
        return "check" in self.decided.models and "check" not in self.models.by_role

    def menu(self) -> Menu:
        """Return the routes that users of a chat or a server can select, once the models are loaded."""
        is_local = not any(model.served for role, model in self.decided.models.items() if role in WRITING)
        compares_answers = self.plan.use == "serve" and self.task.has_answers
        return Menu(
            self.route,
            self.router,
            is_local=is_local,
            compares_answers=compares_answers,
            has_token_stats=self.models.has_token_stats,
            continues=self.models.continues,
        )

    def scorer(self, policy: Policy, limits: RoleLimits | None = None) -> Scorer | Checker | None:
        """Return the scorer or the checker of a policy. The `limits` of a call replace those of the session."""
        if policy.compares_answers:
            return self._checker(limits or self.limits)
        return self._router_scorer if policy.needs_router else None

    @cached_property
    def _router_scorer(self) -> Scorer:
        return need_router(self.router.router).scorer()

    @cached_property
    def _grader(self) -> Grader:
        return self._stack.enter_context(self.task.open_grader())

    def _checker(self, limits: RoleLimits) -> Checker:
        """The checker, which solves a problem before the draft if its files are smaller.

        Without one, the draft checks itself.
        """
        models = self.decided.models
        own = QUICK_SOLUTIONS if limits.has_quick_answers else DRAFT_SOLUTIONS
        # "A draft that checks itself" in tests/benchmarks compares numbers of solutions.
        roles: Sequence[ModelRole] = ["draft", "check"] if "check" in models else ["draft"] * own
        return Checker(
            self.task.stated_answer,
            self._grader,
            limits,
            sorted(roles, key=lambda role: models[role].size or 0),
            at_once="check" in models and any(models[role].served for role in roles),
        )

    def explain(self, route: Route) -> Explain:
        """Return the function that explains the router's decisions. Without a router, it returns None."""
        router = self.router.router if route.policy.needs_router else None
        return router.explain if router else lambda trace, index: None

    def flow(
        self, route: Route, sample: int = 0, sampler: Sampler | None = None, limits: RoleLimits | None = None
    ) -> Callable[[Trace], Flow]:
        """Return the flow of a route. Sample k uses the seed `seed + k`."""
        seed = (sampler or self.decided.settings.sampler).seed + sample
        return partial(route.flow, seed=seed, scorer=self.scorer(route.policy, limits))

    def run_info(
        self,
        *,
        num_problems: int | None,
        route: Route | None = None,
        limits: RoleLimits | None = None,
        sampler: Sampler | None = None,
    ) -> RunInfo:
        chosen = route or self.route
        writing = {role: model for role, model in self.models.by_role.items() if role in chosen.policy.models}
        return RunInfo(
            chosen,
            thoughts_tau=chosen.thoughts_tau(self.scorer(chosen.policy)),
            settings=self._settings_of(chosen, limits, sampler),
            models=self.decided.names,
            descriptions={role: model.describe() for role, model in writing.items()},
            names={role: model.display_name for role, model in writing.items()},
            threads=[model.threads for model in writing.values() if model.threads],
            cores=default_threads(),
            num_problems=num_problems,
            concurrency=self.concurrency,
            find_answer=self.task.find_answer,
            has_equations=self.task.name == "math",
            needs_answer=self.task.name != "free",
            has_quick_answers=(limits or self.limits).has_quick_answers,
            warnings=self.warnings_of(writing),
            bill=self.decided.bill,
        )

    def warnings_of(self, roles: Iterable[ModelRole]) -> Callable[[Problem], Sequence[str]]:
        """Return the function that says why these models probably cannot solve a problem. It knows only built-in models."""
        if not any(is_built_in(self.decided.names[role]) for role in roles):
            return lambda problem: ()
        system = self.decided.settings.system
        return partial(reasons_for_doubt, default_system="" if system == self.task.instructions else system)

    def _settings_of(self, route: Route, limits: RoleLimits | None, sampler: Sampler | None) -> Json:
        """Return the settings that affect a solution, which are stored in its record."""
        router = self.router.router if route.policy.needs_router else None
        return self.decided.settings.of_call(route.policy.models, limits, sampler) | {
            "early_stop": route.stops_early if route.policy.can_stop_early else None,
            "router_sha256": router and router.sha256,
            "router": router and router.card.name,
            "tau_costs": self.router.costs_for([route]),
            "concurrency": self.concurrency,
        }

    @cached_property
    def conditions(self) -> Json:
        """The differences from the run's beginning that change no answer: the machine, threads and concurrency."""
        decided, plan = self.decided, self.plan
        found: Json = {}
        if any(model.sha256 for model in decided.models.values()):
            now = machine_facts(computes=True)
            known = {name: before for name in MACHINE if (before := decided.machine.get(name))}
            found = {name: now[name] for name, before in known.items() if now[name] != before}
        if threads := {role: number for role, number in plan.threads.items() if number != decided.models[role].threads}:
            found["threads"] = threads
        if plan.concurrency != decided.concurrency:
            found["concurrency"] = plan.concurrency
        return found

    def _warn_of_another_pair(self) -> None:
        router = self.router.router
        loaded, decided = self.models.by_role, self.decided.models
        if router is None or self.router.is_universal or self.decided.router is None or not loaded.keys() >= {*WRITING}:
            return
        match = router.card.match({role: decided[role].known_as(loaded[role].card.name) for role in WRITING})
        if match == "files":
            return
        trained_on = " and ".join(model.name for model in router.card.pairs[0].values())
        if match == "names":
            log.warning(
                "router %s matches these models by name, but was trained on other files of %s; for fine-tuned models, use "
                "--router builtin:universal",
                router.card.name,
                trained_on,
            )
        else:
            log.warning(
                "router %s was trained on other models (%s), so its thresholds may not suit these",
                router.card.name,
                trained_on,
            )
