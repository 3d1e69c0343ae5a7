"""Fetches, checks, loads and closes the models of a request, and provides their writers, raters and schedulers."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import cached_property, partial
from statistics import median
from typing import TYPE_CHECKING

from arbitrage_cli.app.costs import fetch, forget_contradicted, measure_missing, warn_of_load
from arbitrage_cli.app.loaded import LocalModel, Model, RemoteModel, WriterOptions, Writers
from arbitrage_cli.app.manifest import check_unchanged, record_settings
from arbitrage_cli.app.options import MAX_CONCURRENCY
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.app.request import BUILT_IN, Request, is_arithmetic
from arbitrage_cli.app.spec import Run, Spec, make_spec
from arbitrage_cli.arbitrage import Flow, Scorer
from arbitrage_cli.costs.measure import PROBE_SECONDS
from arbitrage_cli.costs.memory import Need, check_concurrency, check_memory, memory_needed, rollback_of
from arbitrage_cli.costs.pair import bill, parse_prices
from arbitrage_cli.errors import ModelFileError, ServerError, UsageError
from arbitrage_cli.inference.backend import clock_for
from arbitrage_cli.inference.chat_template import ChatPrompt
from arbitrage_cli.inference.engine import as_speculator
from arbitrage_cli.inference.open import open_model
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Rater, Scheduler
from arbitrage_cli.model_files.pairs import is_built_in
from arbitrage_cli.rewards.raters import RolloutRater
from arbitrage_cli.routing.policies import Checker, Policy
from arbitrage_cli.routing.route import Route, need_router
from arbitrage_cli.runs.records import RunInfo
from arbitrage_cli.system.files import state_of
from arbitrage_cli.types import Limits, ModelRole, Trace

if TYPE_CHECKING:
    from arbitrage_cli.inference.servers.connection import Connection

log = logging.getLogger("arbitrage.session")


def _server_models(request: Request, display: Display, stack: contextlib.ExitStack) -> Callable[[ModelRole], RemoteModel]:
    """Return a function that opens a model on a server. Each server is asked once, when its model is first needed.

    The function raises ServerError if the server cannot be used.
    """

    @functools.cache
    def connection() -> "Connection":
        from arbitrage_cli.inference.servers.connection import Connection  # slow to import

        return stack.enter_context(contextlib.closing(Connection()))

    @functools.cache
    def open_model_of(role: ModelRole) -> RemoteModel:
        from arbitrage_cli.inference.servers.model import open_served

        source = request.named.served[role]
        display.loading(f"asking {source.address.host}", 0.0)
        is_greedy, continues = not request.options.temperature, not request.writes_whole
        return RemoteModel(open_served(connection(), source, role, is_greedy=is_greedy, continues=continues))

    return open_model_of


@contextlib.contextmanager
def open_session(
    request: Request,
    display: Display,
    earlier: Run | None = None,
    *,
    spec: Spec | None = None,
    most: int = MAX_CONCURRENCY,
    max_age: timedelta = timedelta.max,
    limit: float = PROBE_SECONDS,
) -> Iterator["Session"]:
    """Download the models, measure missing token costs, resolve the request, and open a session for it.

    `earlier` is the run.json of a run to resume. `spec` is given if the models of an earlier session are loaded again. At most
    `most` problems are solved at once. Costs older than `max_age` are measured again, in at most `limit` seconds.
    """
    sources = request.models_for(request.asked)
    if any(map(is_built_in, sources.values())):
        display.remind(BUILT_IN)
    paths = fetch(sources, display, offline=request.options.offline)
    measured = measure_missing(request, paths, display, earlier, max_age, limit)
    with contextlib.ExitStack() as stack:
        open_served = _server_models(request, display, stack)
        resolve = partial(make_spec, request, earlier, lambda role: open_served(role).prompt(request.style), measured)
        if spec is None:
            first = partial(resolve, asks_servers=earlier is None)  # a run with nothing left to do asks no server
            spec = first()
            if (concurrency := _choose_concurrency(spec, most)) > 1:
                spec = first(concurrency)  # the costs of a token depend on how many problems share a batch
        for note in spec.notes:
            display.note(note)
        if spec.tau_costs:
            log.info("presets are based on the token costs of %s", spec.tau_costs)
        again = partial(resolve, spec.concurrency) if earlier else lambda: spec  # a resumed run began with recorded thinking
        session = stack.enter_context(contextlib.closing(Session(spec, display, open_served, again)))
        yield session
        if request.loads == "needed":  # a run, whose results are stored
            session.check_files()
    if request.loads == "needed":
        forget_contradicted(spec, session.slowdowns, display)


class Session:
    """The models of a spec, and their writers, raters and schedulers. Create it with `open_session`."""

    def __init__(
        self,
        spec: Spec,
        display: Display,
        open_served: Callable[[ModelRole], RemoteModel],
        resolve: Callable[[], Spec],
    ) -> None:
        self.spec, self.concurrency, self._resolve = spec, spec.concurrency, resolve
        self.models: dict[ModelRole, Model] = {}
        self.display, self._open_served = display, open_served
        self._stack = contextlib.ExitStack()
        self._file_states = {path: state_of(path) for model in spec.models.values() for path in model.files}

    def close(self) -> None:
        self._stack.close()

    def check_files(self) -> None:
        """Raise ModelFileError if a file has changed. llama.cpp maps files into memory, so a change affects results."""
        for path, state in self._file_states.items():
            if not path.exists() or state_of(path) != state:
                hint = "results since the change may be wrong, so start over with another --output"
                raise ModelFileError(f"{path}: the file changed while it was in use", hint)

    @property
    def slowdowns(self) -> dict[ModelRole, float]:
        """The ratio of actual to measured time per token, for each model whose ratio is known."""
        if not self.models or self.concurrency > 1:
            return {}
        return {role: median(found) for role in self.models if (found := self.writers.slowdowns(role))}

    def load(self, policies: Iterable[Policy] | None = None) -> None:
        """Load the models, with enough sequences for these policies (default: all policies of the spec)."""
        spec = self.spec
        policies = list([route.policy for route in spec.routes] if policies is None else policies)
        num_sequences = _num_sequences(spec, policies, self.concurrency)
        rollback = _rollback(spec)
        check_memory(_memory_needed(spec, num_sequences, rollback))
        warn_of_load(spec, self.display)
        served = [role for role, model in spec.loaded.items() if model.served]
        self.models.update({role: self._open_served(role) for role in served})  # before files, which take time to load
        check_unchanged("servers", spec.thinking, self._resolve().thinking)
        self.check_token_stats(policies)
        self._load_files(num_sequences, rollback)
        if spec.models.keys() != spec.loaded.keys():
            self._load_twin()
        self.writing = WriterOptions(
            spec.sampler,
            spec.request.style,
            "prefix" if spec.request.loads == "needed" else "conversation",
            len(spec.routes) == 1,
            {role: model.costs for role, model in spec.models.items() if model.costs},
            spec.task.may_be_complete,
            clock_for(model.card for model in self.models.values()),
        )
        self.writers = Writers(self.models, self.writing)
        self._warn_of_another_pair()

    def _load_files(self, num_sequences: Mapping[ModelRole, int], rollback: Mapping[ModelRole, int]) -> None:
        for role, model in self.spec.loaded.items():
            if model.served:
                continue
            load = self.spec.load_of(role)
            options = replace(
                load,
                threads=model.threads,
                num_sequences=num_sequences[role],
                rollback=rollback.get(role, 0),
                template_variables={} if role == "prm" else load.template_variables,
            )
            progress = partial(self.display.loading, f"loading {role} {model.source}")
            backend = open_model(model.path, options, progress)
            self.models[role] = LocalModel(self._stack.enter_context(contextlib.closing(backend)))

    def _load_twin(self) -> None:
        """Let the draft be the checker too. Raises ServerError if it cannot turn its thinking on and off."""
        draft, source = self.models["draft"], self.spec.models["draft"].source
        if not draft.can_switch_thinking:
            raise ServerError(f"{source} is behind a chat API, which cannot switch its thinking", "use another --check")
        self.models["check"] = draft.twin(self.concurrency)

    def check_token_stats(self, policies: Iterable[Policy]) -> None:
        """Raise ServerError if the draft's server does not send the log-probabilities that a policy needs."""
        needing = [policy.name for policy in policies if policy.reads_token_stats]
        if needing and "draft" in self.models and not self.models["draft"].sends_token_stats:
            raise ServerError(
                f"policy {needing[0]} needs log-probabilities, but {self.spec.models['draft'].source} does not send them",
                "enable log-probabilities on the server, or use a policy that does not need them: random, rsd, "
                "draft, target",
            )

    def prompts(self) -> dict[str, ChatPrompt]:
        """Return the prompts of the draft and the target, by name."""
        spec, models = self.spec, {role: self.models[role] for role in self.models if role in ("draft", "target")}
        return {spec.models[role].source: model.prompt(spec.request.style) for role, model in models.items()}

    def scorer(self, policy: Policy) -> Scorer | Checker | None:
        if policy.kind == "checked":
            return self._checker
        return need_router(self.spec.available_router.router).scorer() if policy.needs_router else None

    @cached_property
    def _checker(self) -> Checker:
        """The checker, which solves a problem before the draft if its files are smaller."""
        models, roles = self.spec.models, tuple[ModelRole, ...](("draft", "check"))
        return Checker(
            self._stack.enter_context(self.spec.task.open_grader()),
            self.spec.check_thinking or "off",
            sorted(roles, key=lambda role: sum(file.stat().st_size for file in models[role].files)),
            at_once=any(models[role].served for role in roles),
        )

    def rater(self, policy: Policy, is_right: Callable[[str, str], bool] | None = None) -> Rater | None:
        """Return the step rater for this policy, or None if the policy needs no rewards.

        Rollouts need `is_right`, which receives a problem id and a solution.

        Raises UsageError if there is no reward source; ModelUnsupportedError if the process reward model cannot rate steps.
        """
        kind = policy.reward if policy.reward != "any" else self.spec.reward
        if policy.reward is None:
            return None
        if kind == "prm" and isinstance(prm := self.models.get("prm"), LocalModel):
            return prm.rater("steps" if is_built_in(self.spec.models["prm"].source) else "turns", self.writing.clock)
        if kind == "rollout" and is_right:
            greedy = replace(self.writing, sampler=Sampler())
            target = self.models["target"].twin(self.concurrency)  # policies use the first sequences
            return RolloutRater(target.writer("target", greedy), is_right)
        hint = "use --prm MODEL" + (", or --reward rollout" if is_right else "")
        raise UsageError(f"policy {policy.name} needs a reward source", hint)

    def scheduler(self, route: Route | None = None, rater: Rater | None = None) -> Scheduler:
        """Return a scheduler for one route. If `route` is None, jobs may have different routes, and `rater` rates steps."""
        writers = self.writers(route)
        return Scheduler(
            writers,
            concurrency=self.concurrency,
            rater=self.rater(route.policy) if route else rater,
            speculator=as_speculator(writers.get("draft")),
        )

    def collector(self) -> Scheduler:
        """Return a scheduler for the collection of states. If the target continues steps for rewards, it is greedy."""
        writers, is_rated = self.writers(None), self.spec.reward == "prm"
        if not is_rated:
            writers["target"] = self.models["target"].writer(
                "target", replace(self.writing, sampler=Sampler(), unit_costs={})
            )
        return Scheduler(
            writers, concurrency=self.concurrency, rater=self.rater(self.spec.route.policy) if is_rated else None
        )

    def flow(self, route: Route, sampler: Sampler | None = None) -> Callable[[Trace], Flow]:
        seed = (sampler or self.spec.sampler).seed
        return partial(route.flow, seed=seed, scorer=self.scorer(route.policy))

    def run_info(
        self,
        *,
        num_problems: int | None,
        route: Route | None = None,
        limits: Limits | None = None,
        sampler: Sampler | None = None,
    ) -> RunInfo:
        chosen = route or self.spec.route
        return RunInfo(
            chosen,
            thoughts_tau=chosen.thoughts_tau(self.scorer(chosen.policy)),
            settings=record_settings(self.spec, chosen, limits, sampler),
            models=self.spec.sources,
            descriptions={role: self.models[role].describe() for role in chosen.policy.models},
            num_problems=num_problems,
            concurrency=self.concurrency,
            find_answer=self.spec.task.find_answer,
            may_answer=is_arithmetic if any(map(is_built_in, self.spec.sources.values())) else lambda question: True,
            bill=partial(bill, parse_prices(price)) if (price := self.spec.request.named.price) else lambda finished: None,
        )

    def _warn_of_another_pair(self) -> None:
        router = self.spec.deciding_router
        if router is None or self.spec.available_router.is_universal:  # `app.spec` warns of a universal router
            return
        loaded = {role: self.models[role].card.name for role in ("draft", "target") if role in self.models}
        if not any(all(pair[role]["name"] == name for role, name in loaded.items()) for pair in router.card.pairs):
            trained_on = " and ".join(model["name"] for model in router.card.pairs[0].values())
            log.warning(
                "router %s was trained on %s, so its thresholds may not suit these models", router.card.name, trained_on
            )


def _num_sequences(spec: Spec, policies: Iterable[Policy], concurrency: int = 1) -> dict[ModelRole, int]:
    has_rollouts = spec.request.compares and spec.reward == "rollout" and any(policy.reward == "any" for policy in policies)
    twins = len(spec.models) - len(spec.loaded)
    numbers: dict[ModelRole, int] = {"draft": 1 + twins, "target": 1 + has_rollouts, "prm": 1, "check": 1}
    return {role: number * concurrency for role, number in numbers.items()}


def _choose_concurrency(spec: Spec, most: int) -> int:
    """Return the number of problems to solve at once. Raises UsageError or ModelMemoryError if they are too many."""
    count = min(spec.request.concurrency, most)
    if count > 1:
        sequences = _num_sequences(spec, [route.policy for route in spec.routes])
        check_concurrency(count, _memory_needed(spec, sequences, _rollback(spec)))
    return count


def _rollback(spec: Spec) -> dict[ModelRole, int]:
    target = spec.models.get("target")  # no other model verifies draft tokens
    return {"target": rollback_of(target.path, target.costs)} if target else {}


def _memory_needed(spec: Spec, num_sequences: Mapping[ModelRole, int], rollback: Mapping[ModelRole, int]) -> Need:
    paths = {role: model.path for role, model in spec.loaded.items()}
    return memory_needed(paths, spec.load, num_sequences, rollback, {"check": spec.check_context})
