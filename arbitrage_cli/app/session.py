"""Takes a command from its request to what is decided and to its open models, and describes the solutions that they write."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial

from arbitrage_cli.app.decide import available_router, decide
from arbitrage_cli.app.gather import fetch, fetch_and_gather, gather, machine_facts, warn_of_load
from arbitrage_cli.app.open_models import OpenModels, served_models
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.app.request import Request
from arbitrage_cli.app.resume import continued, routes_of
from arbitrage_cli.arbitrage import Flow, Scorer
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.model_files.pairs import is_built_in, is_gguf
from arbitrage_cli.problems.exercises import is_exercise
from arbitrage_cli.routing.checker import Checker
from arbitrage_cli.routing.policies import Policy
from arbitrage_cli.routing.route import DRAFT_SOLUTIONS, Menu, Route, need_router
from arbitrage_cli.runs.records import RunInfo
from arbitrage_cli.runs.run import Run, Setup
from arbitrage_cli.types import WRITING, Json, Limits, ModelRole, Trace

log = logging.getLogger("arbitrage.session")


class Session:
    """A command's request, what was decided from it, and its models, which `load` opens. Create it with `open_session`."""

    def __init__(self, request: Request, decided: Setup, models: OpenModels, display: Display) -> None:
        self.request, self.decided, self.models, self.display = request, decided, models, display
        self.routes = routes_of(request, decided)
        self.limits, self.task, self.concurrency = decided.settings.limits, request.task, models.concurrency
        self.router = available_router(request, decided.unit_costs, decided.price)
        self._stack = contextlib.ExitStack()

    @property
    def route(self) -> Route:
        return self.routes[0]

    def close(self) -> None:
        self._stack.close()
        self.models.close()

    def load(self) -> None:
        warn_of_load(self.models.threads, self.display)
        self.models.load([route.policy for route in self.routes], self.display)
        self._warn_of_another_pair()

    def menu(self) -> Menu:
        """Return the routes that users of a chat or a server can select."""
        request = self.request
        compares_answers = request.loads == "served" and self.task.has_answers
        return Menu(self.route, self.router, is_local=not request.named.served, compares_answers=compares_answers)

    def scorer(self, policy: Policy) -> Scorer | Checker | None:
        if policy.compares_answers:
            return self._checker
        return self._router_scorer if policy.needs_router else None

    @cached_property
    def _router_scorer(self) -> Scorer:
        return need_router(self.router.router).scorer()

    @cached_property
    def _checker(self) -> Checker:
        """The checker, which solves a problem before the draft if its files are smaller. Without one, the draft checks itself."""
        models = self.decided.models
        # "A draft that checks itself" in tests/benchmarks compares numbers of solutions.
        roles: Sequence[ModelRole] = ["draft", "check"] if "check" in models else ["draft"] * DRAFT_SOLUTIONS
        return Checker(
            self._stack.enter_context(self.task.open_grader()),
            self.decided.settings.check_thinking or "off",
            sorted(roles, key=lambda role: models[role].size or 0),
            at_once="check" in models and any(models[role].served for role in roles),
        )

    def flow(self, route: Route, sample: int = 0, sampler: Sampler | None = None) -> Callable[[Trace], Flow]:
        """Return the flow of a route. Sample k uses the seed `seed + k`."""
        seed = (sampler or self.decided.settings.sampler).seed + sample
        return partial(route.flow, seed=seed, scorer=self.scorer(route.policy))

    def run_info(
        self,
        *,
        num_problems: int | None,
        route: Route | None = None,
        limits: Limits | None = None,
        sampler: Sampler | None = None,
    ) -> RunInfo:
        chosen = route or self.route
        writing = {role: model for role, model in self.models.by_role.items() if role in chosen.policy.models}
        return RunInfo(
            chosen,
            thoughts_tau=chosen.thoughts_tau(self.scorer(chosen.policy)),
            settings=self._settings_of(chosen, limits, sampler),
            models=self.decided.sources,
            descriptions={role: model.describe() for role, model in writing.items()},
            names={role: model.display_name for role, model in writing.items()},
            num_problems=num_problems,
            concurrency=self.concurrency,
            find_answer=self.task.find_answer,
            is_known=is_exercise
            if any(is_built_in(self.decided.sources[role]) for role in writing)
            else lambda question: True,
            bill=self.decided.bill,
        )

    def _settings_of(self, route: Route, limits: Limits | None, sampler: Sampler | None) -> Json:
        """Return the settings that affect a solution, for its record."""
        router = self.router.router if route.policy.needs_router else None
        return self.decided.settings.of_call(limits, sampler) | {
            "early_stop": route.stops_early if route.policy.can_stop_early else None,
            "router_sha256": router and router.sha256,
            "router": router and router.card.name,
            "tau_costs": self.router.costs_for([route]),
            "concurrency": self.concurrency,
        }

    @cached_property
    def conditions(self) -> Json:
        """What differs now from the run's beginning without changing its answers: the machine, threads and concurrency."""
        decided = self.decided
        found: Json = {}
        if any(map(is_gguf, decided.sources.values())):
            now = machine_facts(computes=True)
            found = {name: now[name] for name in ("cpu", "gpu", "llama_cpp_python") if now[name] != decided.machine[name]}
        if threads := {role: n for role, n in self.models.threads.items() if n != decided.models[role].threads}:
            found["threads"] = threads
        asked = self.request.options.concurrency
        return found | ({"concurrency": asked} if asked and asked != decided.concurrency else {})

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
                "router %s matches these models by name, but was trained on other files of %s; it may not suit a fine-tune, "
                "for which you can use --router builtin:universal",
                router.card.name,
                trained_on,
            )
        else:
            log.warning(
                "router %s was trained on other models (%s), so its thresholds may not suit these",
                router.card.name,
                trained_on,
            )


@contextlib.contextmanager
def open_session(
    request: Request,
    display: Display,
    began: Run | None = None,
    *,
    decided: Setup | None = None,
    most: int | None = None,
    limit: float | None = None,
) -> Iterator[Session]:
    """Download the models, decide how the problems are solved, and open a session for them.

    A run that `began` is continued as it was decided then. `decided` is given if the models of an earlier session are loaded
    again. At most `most` problems are solved at once. Costs are measured in at most `limit` seconds.
    """
    with contextlib.ExitStack() as stack:
        open_served = served_models(request, display, stack)
        if began:
            fetch(request.models_for([route.policy for route in began.routes]), display, offline=request.options.offline)
            decided = continued(request, began, lambda added: fetch_and_gather(added, display, open_served, began))
        elif decided is None:
            decided = decide(request, fetch_and_gather(request, display, open_served, limit=limit))
        for note in decided.notes:
            display.tell(note)
        if decided.tau_costs:
            log.info("presets are based on the token costs of %s", decided.tau_costs)
        models = OpenModels(request, decided, open_served, most)
        session = stack.enter_context(contextlib.closing(Session(request, decided, models, display)))
        yield session
        if request.loads == "needed":  # a run, whose results are stored
            models.check_files()


def decide_without_models(request: Request, began: Run | None) -> Setup:
    """Return what a session would decide. Nothing is downloaded or measured, and no server is asked."""
    return continued(request, began, gather) if began else decide(request, gather(request))
