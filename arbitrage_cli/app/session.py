"""Fetches, checks, loads and closes the models of a `Setup`, and provides their writers, raters and schedulers."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

from arbitrage_cli.app.loaded import LocalModel, Model, RemoteModel, WriterOptions, Writers
from arbitrage_cli.app.manifest import Run, make_manifest, record_settings, resumed_costs
from arbitrage_cli.app.model_choice import BUILT_IN
from arbitrage_cli.app.protocol import Watcher
from arbitrage_cli.app.resolved import resolve
from arbitrage_cli.app.setup import Setup
from arbitrage_cli.arbitrage import Flow, Scorer
from arbitrage_cli.errors import ModelFileError, UsageError
from arbitrage_cli.evaluation.prices import parse_prices
from arbitrage_cli.inference.backend import clock_for
from arbitrage_cli.inference.chat_template import PromptStyle
from arbitrage_cli.inference.engine import as_speculator
from arbitrage_cli.inference.kv_cache import Keep
from arbitrage_cli.inference.open import open_model
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Rater, Scheduler
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.model_files.pairs import find_files, is_built_in, local_files
from arbitrage_cli.rewards.rollouts import RolloutRater
from arbitrage_cli.routing.policies import Policy
from arbitrage_cli.routing.route import Route, need_router
from arbitrage_cli.runs.records import RunInfo
from arbitrage_cli.runs.results import unit_costs_of
from arbitrage_cli.stats import rounding
from arbitrage_cli.system.files import state_of
from arbitrage_cli.tuning.memory import MOST, check_memory, choose_concurrency, memory_needed, rollback_of
from arbitrage_cli.tuning.placement import Placement, place
from arbitrage_cli.types import Limits, ModelRole, Trace

log = logging.getLogger("arbitrage.session")


@dataclass(frozen=True, slots=True)
class Rollouts:
    """The settings of rollouts: one continuation per sampler. `is_right` receives a problem id and a solution."""

    is_right: Callable[[str, str], bool]
    samplers: Sequence[Sampler] = (Sampler(),)


class Session:
    """The models of a setup. Entering the session fetches the files, and leaving it closes the models."""

    def __init__(self, setup: Setup, display: Watcher, *, keep: Keep = "prefix") -> None:
        self.setup = setup
        self.concurrency = 1
        self.models: dict[ModelRole, Model] = {}
        self._unit_costs: Mapping[ModelRole, UnitCosts] = {}
        self._file_states: Mapping[Path, Mapping[str, int]] = {}
        self._earlier_threads: Mapping[ModelRole, int] = {}
        self._display = display
        self._stack = contextlib.ExitStack()
        shares = len(setup.routes) == 1 or keep == "conversation"
        is_explicit = setup.options.generation.think is not None
        style = PromptStyle(setup.system, setup.task.step_end, is_explicit)
        self.writing = WriterOptions(Sampler(), style, keep, shares, {}, setup.task.may_be_complete)

    def __enter__(self) -> Self:
        if any(map(is_built_in, self.setup.sources.values())):
            self._display.remind(BUILT_IN)
        for note in self.setup.notes:
            self._display.note(note)
        if self.setup.tau_costs:
            log.info("presets are based on the token costs of %s", self.setup.tau_costs)
        files = fetch(self.setup.sources, self._display, offline=self.setup.options.models.offline)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._stack.close)
            self.resolved = resolve(self.setup, files, self._server_thinks)
            for note in self.resolved.notes:
                self._display.note(note)
            self._unit_costs = self._placement.unit_costs
            self._file_states = {path: state_of(path) for source in files.values() for path in local_files(source)}
            on_failure.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def check_files(self) -> None:
        """Raise ModelFileError if a file has changed. llama.cpp maps files into memory, so a change affects results."""
        for path, state in self._file_states.items():
            if not path.exists() or state_of(path) != state:
                hint = "restore the original file, and run the command again"
                raise ModelFileError(f"{path}: the file changed while it was in use", hint)

    @property
    def _placement(self) -> Placement:
        return place(self.resolved.files, self.resolved.load, self._earlier_threads)

    @property
    def _rollback(self) -> dict[ModelRole, int]:
        target = self.resolved.files.get("target")  # no other model verifies draft tokens
        return {"target": rollback_of(target, self._unit_costs.get("target"))} if target else {}

    def choose_concurrency(self, *, most: int = MOST, rollouts: int = 1, earlier: int | None = None) -> int:
        """Set and return the number of problems to solve at once. `earlier` is the concurrency of a resumed run."""
        policies = self._policies
        sequences = _num_sequences(policies, self.setup.reward, rollouts)
        needed = partial(memory_needed, self.resolved.files, self.resolved.load, sequences, self._rollback)
        self.concurrency = choose_concurrency(self.setup.concurrency, needed, most=most, earlier=earlier)
        for name in dict.fromkeys(policy.name for policy in policies if policy.speculates and self.concurrency > 1):
            self._display.note(
                f"policy {name} saves time only with one problem at a time (--concurrency 1); with several problems, it is "
                "hardly faster than the target alone"
            )
        return self.concurrency

    def manifest(self, routes: Sequence[Route], *, reads_models: bool = True) -> Run:
        """Return the manifest. If `reads_models` is false, known checksums are reused."""
        return make_manifest(self.resolved, routes, self._placement, self._display.loading, reads_models=reads_models)

    def resume(self, run: Run | None) -> None:
        """Use the threads and token costs recorded in a run, so that the resumed run computes in the same way."""
        if not run:
            return
        current_costs: dict[str, Any] = {role: asdict(costs) for role, costs in self._unit_costs.items()}
        self._unit_costs = unit_costs_of({"unit_costs": resumed_costs(run, current_costs)})
        current = self._placement.threads
        recorded = {role: facts.get("threads") for role, facts in run["models"].items()}
        self._earlier_threads = {role: count for role, count in recorded.items() if count}
        for role, count in self._placement.threads.items():
            if role in current and count != current[role]:
                threads = rounding.count(count, "thread")
                self._display.note(
                    f"the resumed run uses {threads} for the {role}, as before; a new run would use {current[role]}"
                )

    def load(self, policies: Iterable[Policy] | None = None, *, rollouts: int = 1) -> None:
        """Load the models, with enough sequences for these policies (default: all policies of the setup)."""
        policies = list(self._policies if policies is None else policies)
        num_sequences = _num_sequences(policies, self.setup.reward, rollouts, self.concurrency)
        check_memory(memory_needed(self.resolved.files, self.resolved.load, num_sequences, self._rollback))
        self.models.update(self._served)  # servers are checked before files take time to load
        if needing := [policy.name for policy in policies if policy.reads_token_stats and "draft" in self.models]:
            self.models["draft"].need_token_stats(needing[0])
        self._load_files(num_sequences)
        clock = clock_for(model.card for model in self.models.values())
        self.writing = replace(self.writing, sampler=self.resolved.sampler, unit_costs=self._unit_costs, clock=clock)
        self.writers = Writers(self.models, self.writing)
        self._warn_of_unused_variables()
        self._warn_of_another_pair()

    @cached_property
    def _served(self) -> Mapping[ModelRole, RemoteModel]:
        served = {role: self.setup.served[role] for role in self.setup.sources if role in self.setup.served}
        if not served:
            return {}
        from arbitrage_cli.inference.servers.connection import Connection  # slow to import
        from arbitrage_cli.inference.servers.probe import open_served

        generation = self.setup.options.generation
        is_greedy = not generation.temperature
        connection, found = self._stack.enter_context(contextlib.closing(Connection())), dict[ModelRole, RemoteModel]()
        for role, source in served.items():
            self._display.loading(f"asking {source.address.host}", 0.0)
            found[role] = RemoteModel(open_served(connection, source, role, is_greedy=is_greedy))
        return found

    def _server_thinks(self, role: ModelRole) -> bool | None:
        return self._served[role].prompt(self.writing.style).thinks_by_itself

    def _load_files(self, num_sequences: Mapping[ModelRole, int]) -> None:
        placed, rollback = self._placement, self._rollback
        for role, source in self.setup.sources.items():
            if role in self.models:
                continue
            options = replace(
                self.resolved.load,
                threads=placed.threads[role],
                num_sequences=num_sequences[role],
                rollback=rollback.get(role, 0),
                template_variables={} if role == "prm" else self.resolved.load.template_variables,
            )
            progress = partial(self._display.loading, f"loading {role} {source}")
            backend = open_model(self.resolved.files[role], options, progress)
            self.models[role] = LocalModel(self._stack.enter_context(contextlib.closing(backend)))

    def scorer(self, policy: Policy) -> Scorer | None:
        return need_router(self.setup.router).scorer() if policy.needs_router else None

    def rater(self, policy: Policy, rollouts: Rollouts | None = None) -> Rater | None:
        """Return the step rater for this policy, or None if the policy needs no rewards.

        Raises UsageError if there is no reward source; ModelUnsupportedError if the process reward model cannot rate steps.
        """
        kind = policy.reward if policy.reward != "any" else self.setup.reward
        if policy.reward is None:
            return None
        if kind == "prm" and isinstance(prm := self.models.get("prm"), LocalModel):
            return prm.rater("steps" if is_built_in(self.setup.sources["prm"]) else "turns", self.writing.clock)
        if kind == "rollout" and rollouts is not None:
            return self._rollout(rollouts)
        hint = "use --prm MODEL" + (", or --reward rollout" if rollouts else "")
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

    def flow(self, route: Route, sampler: Sampler | None = None) -> Callable[[Trace], Flow]:
        seed = (sampler or self.resolved.sampler).seed
        return partial(route.flow, seed=seed, scorer=self.scorer(route.policy))

    def run_info(
        self,
        *,
        num_problems: int | None,
        route: Route | None = None,
        limits: Limits | None = None,
        sampler: Sampler | None = None,
    ) -> RunInfo:
        chosen, drawn = route or self.setup.route, sampler or self.resolved.sampler
        return RunInfo(
            policy=chosen.policy.name,
            score_is=chosen.policy.score_is or None,
            tau=chosen.tau,
            tau_name=chosen.tau_name,
            thoughts_tau=chosen.thoughts_tau(self.scorer(chosen.policy)),
            temperature=drawn.temperature,
            seed=drawn.seed,
            settings=record_settings(self.setup, chosen, limits or self.resolved.limits, drawn)
            | {"concurrency": self.concurrency},
            models=self.setup.sources,
            descriptions={role: self.models[role].describe() for role in chosen.policy.models},
            num_problems=num_problems,
            concurrency=self.concurrency,
            find_answer=self.setup.task.find_answer,
            bill=parse_prices(price)["target"].bill if (price := self.setup.price) else lambda finished: None,
        )

    @property
    def _policies(self) -> list[Policy]:
        return [route.policy for route in self.setup.routes]

    def _rollout(self, rollouts: Rollouts) -> RolloutRater:
        writers = [  # policies use the first sequences
            self.models["target"].own_writer("target", replace(self.writing, sampler=sampler), self.concurrency * number)
            for number, sampler in enumerate(rollouts.samplers, start=1)
        ]
        return RolloutRater(writers, rollouts.is_right)

    def _warn_of_another_pair(self) -> None:
        router = self.setup.deciding_router
        if router is None or self.setup.available_router.is_universal:  # `warnings_about` covers a universal router
            return
        loaded = {role: self.models[role].card.name for role in ("draft", "target") if role in self.models}
        if not any(all(pair[role]["name"] == name for role, name in loaded.items()) for pair in router.card.pairs):
            trained_on = " and ".join(model["name"] for model in router.card.pairs[0].values())
            log.warning(
                "router %s was trained on %s, so its thresholds may not suit these models", router.card.name, trained_on
            )

    def _warn_of_unused_variables(self) -> None:
        if any(role in self.setup.served for role in self.models):
            return  # the server's template may use them
        templates = [model.chat_template or "" for role, model in self.models.items() if role != "prm"]
        for name in self.resolved.load.template_variables:
            if not any(name in template for template in templates):
                log.warning("chat_template_kwargs of the pair sets '%s', but the models' chat templates do not use it", name)


def fetch(sources: Mapping[ModelRole, str], display: Watcher, *, offline: bool) -> dict[ModelRole, str]:
    """Download missing files. Return each model's first file, or its name if it has no file."""
    found: dict[ModelRole, str] = {}
    for role, source in sources.items():
        files = find_files(source, offline=offline, on_progress=display.fetching)
        if files and not local_files(source):
            raise ModelFileError(f"{files[0]}: no such file", f"check the path of the {role} model")
        found[role] = str(files[0]) if files else source
    return found


def _num_sequences(
    policies: Iterable[Policy], reward: str | None, rollouts: int, concurrency: int = 1
) -> dict[ModelRole, int]:
    kinds = {policy.reward for policy in policies}
    extra = rollouts if "any" in kinds and reward == "rollout" else 0
    return {"draft": concurrency, "target": (1 + extra) * concurrency, "prm": concurrency}
