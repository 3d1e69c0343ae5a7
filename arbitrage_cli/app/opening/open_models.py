"""The models of a command that are open: checked, loaded and closed here. They provide writers, raters and schedulers.

A model runs in this process or on a server (`app.models`).
"""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from arbitrage_cli.app.asking.naming import word_for
from arbitrage_cli.app.deciding.plan import Plan
from arbitrage_cli.app.models import LocalModel, Model, RemoteModel, WriterOptions, Writers
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.costs.memory import Need, check_memory, memory_needed, rollback_of
from arbitrage_cli.errors import ModelFileError, ServerError, UsageError
from arbitrage_cli.inference.backend import Backend, clock_for
from arbitrage_cli.inference.chat_template import ChatPrompt
from arbitrage_cli.inference.engine import as_speculator
from arbitrage_cli.inference.open import display_name, open_model
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Rater, Scheduler
from arbitrage_cli.inference.servers.address import ServedSource
from arbitrage_cli.inference.sparing_clock import sparing
from arbitrage_cli.model_files.checksums import sha256_seen
from arbitrage_cli.model_files.pairs import first_with_same_file, is_built_in, is_served, local_files
from arbitrage_cli.routing.policies import Policy
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.run import LoadedModel, ModelSetup
from arbitrage_cli.system.files import state_of
from arbitrage_cli.types import WRITING, ByRole, Fields, ModelRole, Problem, RoleLimits

if TYPE_CHECKING:
    from arbitrage_cli.inference.servers.connection import Connection


class OpenModels:
    """The models of a decision. `by_role` is empty until `load` is called.

    `concurrency` problems are solved at once, and `num_slots` may be begun. The writers, and the `writing` options, exist
    once the models are loaded.
    """

    by_role: dict[ModelRole, Model]
    writing: WriterOptions
    writers: Writers

    def __init__(
        self, plan: Plan, open_served: Callable[[ModelRole], RemoteModel | None], max_concurrency: int | None
    ) -> None:
        """Choose the concurrency, at most `max_concurrency`. A model for which `open_served` returns None stays absent."""
        self._plan, self._decided, self._open_served = plan, plan.setup, open_served
        self._stack = contextlib.ExitStack()
        self.by_role = {}
        self._backends: dict[ModelRole, Backend] = {}
        self.concurrency = min(plan.concurrency, max_concurrency or plan.concurrency)
        self.num_slots = self.concurrency + plan.num_spare
        paths = [path for source in plan.sources.values() for path in local_files(source)]
        self._file_states = {path: state_of(path) for path in paths}

    def close(self) -> None:
        self._stack.close()

    def check_files(self) -> None:
        """Raise ModelFileError if a file has changed. llama.cpp maps files into memory, so a change affects results."""
        for path, state in self._file_states.items():
            if not path.exists() or state_of(path) != state:
                hint = "results since the change may be wrong, so start over with another --output"
                raise ModelFileError(f"{path}: the file changed while it was in use", hint)

    def load(self, policies: Iterable[Policy], display: Display) -> None:
        """Load the models for these policies.

        Raises UsageError or ModelMemoryError if they do not fit in the memory; UsageError if a server's model has changed.
        """
        sources, decided = self._plan.sources, self._decided
        check_memory(self._memory_needed, self.concurrency, self._plan.num_spare)
        for role, source in sources.items():  # servers first, because files take time to load
            if is_served(source) and (remote := self._open_served(role)):
                self._add_served(role, remote)
        self.check_servers(policies)
        first = first_with_same_file(sources)
        for role, source in sources.items():
            if not is_served(source):
                name = display_name(source)
                sharing = " and ".join(word_for(other) for other, one in first.items() if one == role)
                progress = partial(display.loading, f"loading {sharing}", name)
                same = self._backends.get(first[role])
                self._backends[role] = self._load_file(role, progress, same)
                self.by_role[role] = LocalModel(self._backends[role], name)
        self.by_role = {role: self.by_role[role] for role in sources if role in self.by_role}
        self.writing = WriterOptions(
            sampler=decided.settings.sampler,
            style=self._plan.style,
            keep="prefix" if self._plan.use == "run" else "conversation",
            shares_prompts=len(decided.routes) == 1,
            unit_costs=decided.unit_costs,
            clock=sparing(clock_for(model.card for model in self.by_role.values())),
        )
        self.writers = Writers(self.by_role, self.writing)

    @property
    def servers(self) -> dict[ModelRole, str]:
        """The servers of the models that are not in this process."""
        return {role: model.server for role, model in self.by_role.items() if model.server}

    @property
    def cores(self) -> int:
        """The number of cores that a loaded model keeps busy, at most."""
        return max((model.card.cores for model in self.by_role.values() if isinstance(model, LocalModel)), default=1)

    @property
    def descriptions(self) -> dict[ModelRole, LoadedModel]:
        """The facts that the loaded models report about themselves, for run.json."""
        found: dict[ModelRole, LoadedModel] = {}
        for role, model in self.by_role.items():
            template = model.chat_template
            digest = None if template is None else hashlib.sha256(template.encode()).hexdigest()
            found[role] = LoadedModel(name=model.card.name, description=model.card.description, chat_template_sha256=digest)
        return found

    def check_servers(self, policies: Iterable[Policy]) -> None:
        """Raise ServerError if a model's server lacks what a policy needs.

        Models that write single steps continue each other's text. Some scores need the draft's log-probabilities.
        """
        asked = list(policies)
        if self._cannot_continue and any(policy.routes_steps for policy in asked):
            raise self._cannot_continue
        needing = [policy.name for policy in asked if policy.reads_token_stats]
        if needing:
            self._need_token_stats(f"policy {needing[0]}", "a policy that does not need them: target, draft, random")

    @property
    def continues(self) -> bool:
        """Whether the draft and the target can continue each other's text."""
        return self._cannot_continue is None

    @property
    def _cannot_continue(self) -> ServerError | None:
        writing = [self.by_role[role] for role in WRITING if role in self.by_role]
        return next((model.cannot_continue for model in writing if model.cannot_continue), None)

    @property
    def has_token_stats(self) -> bool:
        return "draft" not in self.by_role or self.by_role["draft"].sends_token_stats

    def _need_token_stats(self, what: str, remedy: str) -> None:
        if not self.has_token_stats:
            raise ServerError(
                f"{what} needs log-probabilities, but {self._decided.names['draft']} does not send them",
                f"enable log-probabilities on the server, or use {remedy}",
            )

    def prompts(self, roles: Collection[ModelRole]) -> dict[ModelRole, ChatPrompt]:
        """Return the prompts of the models with these roles."""
        return {role: self.by_role[role].prompt(self._plan.style) for role in roles if role in self.by_role}

    def scheduler(self, route: Route | None = None, policy: Policy | None = None) -> Scheduler:
        """Return a scheduler for one route. If `route` is None, jobs may have different routes, and rewards as `policy` needs.

        Raises ModelUnsupportedError if the process reward model cannot rate steps.
        """
        writers, policy = self.writers(route), route.policy if route else policy
        speculator = as_speculator(writers.get("draft"))
        return Scheduler(writers, concurrency=self.num_slots, rater=self._rater(policy), speculator=speculator)

    def collector(self, policy: Policy) -> Scheduler:
        """Return a scheduler for the collection of states. If the target continues steps for rewards, it is greedy.

        Raises ServerError if the draft's server does not send the log-probabilities that states contain.
        """
        self._need_token_stats("collect", "another draft")
        writers, rater = self.writers(None), self._rater(policy)
        if rater is None:
            greedy = replace(self.writing, sampler=Sampler(), unit_costs={})
            writers["target"] = self.by_role["target"].writer("target", greedy)
        return Scheduler(writers, concurrency=self.num_slots, rater=rater)

    def read_shared(self, limits: RoleLimits) -> None:
        """Prefill the prefix of all prompts in the models on this machine, once their writers exist.

        Otherwise, the first policy would pay for it.
        """
        for role, model in self.by_role.items():
            if isinstance(model, LocalModel):
                model.read_shared(Problem("", "", thinks=limits.of(role).thinking.switch), self.num_slots)

    def _rater(self, policy: Policy | None) -> Rater | None:
        """Return the rater, if this policy needs a process reward model."""
        return self._prm_rater if policy and policy.needs_prm(self._decided.settings.reward) else None

    @cached_property
    def _prm_rater(self) -> Rater | None:
        prm, is_own = self.by_role.get("prm"), is_built_in(self._decided.names.get("prm", ""))
        return prm.rater("steps" if is_own else "turns", self.writing.clock) if isinstance(prm, LocalModel) else None

    # --- loading

    def _load_file(self, role: ModelRole, progress: Callable[[float], None], same: Backend | None) -> Backend:
        """Load a model, or share the weights of an open backend with the same files."""
        model, load, source = self._decided.models[role], self._decided.settings.load, self._plan.sources[role]
        _check_sha256(role, source, model)
        options = replace(
            load,
            context_size=model.context_size,
            threads=self._plan.threads.get(role),
            num_sequences=self.num_slots,
            rollback=self._rollback.get(role, 0),
            template_variables={} if role == "prm" else load.template_variables,
        )
        path = str(next(iter(local_files(source)), source))
        return self._stack.enter_context(contextlib.closing(open_model(path, options, progress, same)))

    def _add_served(self, role: ModelRole, remote: RemoteModel) -> None:
        """Add a model on a server. Raises UsageError if it is not the model that was decided."""
        served = self._decided.models[role].served
        before: Fields = (served.facts if served else None) or {}
        now = remote.served_facts
        for name in before:
            if before[name] != now.get(name):
                raise UsageError(
                    f"{word_for(role)} server: {name} changed from {before[name]} to {now.get(name)} since this run began",
                    "serve the same model with the same settings, or use another --output",
                )
        self.by_role[role] = remote

    @property
    def _rollback(self) -> dict[ModelRole, int]:
        source = self._plan.sources.get("target")  # no other model verifies draft tokens
        return {"target": rollback_of(source, self._decided.models["target"].costs)} if source else {}

    @property
    def _memory_needed(self) -> Need:
        contexts = {role: model.context_size for role, model in self._decided.models.items()}
        return memory_needed(self._plan.sources, self._decided.settings.load, self._rollback, contexts)


def _check_sha256(role: ModelRole, source: str, model: ModelSetup) -> None:
    """Raise UsageError if the file to open is not the model that was decided."""
    files = local_files(source) if model.sha256 else ()
    if files and sha256_seen(files) != model.sha256:
        hint = "restore the file, or use another --output"
        raise UsageError(f"{files[0]}: the file is not the {word_for(role)} of this run, or has changed", hint, option=role)


def served_models(
    sources: ByRole[ServedSource],
    display: Display,
    stack: contextlib.ExitStack,
    *,
    serving_silence: float | None,
    is_greedy: bool,
) -> Callable[[ModelRole], RemoteModel]:
    """Return a function that opens a model on a server. Each server is asked once, when its model is first needed.

    If `is_greedy` is true, rejected seeds are not reported. The function raises ServerError if the server cannot be used.
    """

    @functools.cache
    def connection() -> "Connection":
        from arbitrage_cli.inference.servers.connection import Connection  # slow to import

        return stack.enter_context(contextlib.closing(Connection(serving_silence=serving_silence)))

    @functools.cache
    def open_model_of(role: ModelRole) -> RemoteModel:
        from arbitrage_cli.inference.servers.probing import open_served

        source = sources[role]
        display.loading("asking server", source.address.host)
        return RemoteModel(open_served(connection(), source, is_greedy=is_greedy))

    return open_model_of
