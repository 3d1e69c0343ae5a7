"""The models of a command that are open: checked, loaded and closed here. They provide writers, raters and schedulers.

A model runs in this process or on a server.
"""

import contextlib
import functools
import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from arbitrage_cli.app.protocol import Display
from arbitrage_cli.app.request import Request
from arbitrage_cli.costs.memory import Need, check_memory, memory_needed, rollback_of
from arbitrage_cli.costs.store import threads_without_costs
from arbitrage_cli.errors import ModelFileError, ProblemError, ServerError, UsageError
from arbitrage_cli.inference.backend import Backend, Clock, LoadOptions, clock_for
from arbitrage_cli.inference.chat_template import ChatPrompt, PromptStyle
from arbitrage_cli.inference.engine import Engine, as_speculator
from arbitrage_cli.inference.kv_cache import KvCache, RetainedIds, chat_prompt
from arbitrage_cli.inference.open import display_name, open_model
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Rater, Scheduler, Writer
from arbitrage_cli.inference.servers.dialects import Chat
from arbitrage_cli.inference.servers.model import ServedModel
from arbitrage_cli.inference.servers.writer import ChatWriter, ServedWriter
from arbitrage_cli.inference.sparing_clock import sparing
from arbitrage_cli.inference.speculation import Planner
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.model_files.pairs import is_built_in, is_served, local_files
from arbitrage_cli.numbers import formatting
from arbitrage_cli.rewards import PrmRater, PrmStyle
from arbitrage_cli.routing.policies import Policy
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.run import LoadedModel, Setup
from arbitrage_cli.system.files import state_of
from arbitrage_cli.types import WRITING, ByRole, Fields, ModelRole, Problem, frozen

if TYPE_CHECKING:
    from arbitrage_cli.inference.servers.connection import Connection


@frozen
class WriterOptions:
    """The options of writers.

    `keep` selects which part of a KV cache is kept between problems. If `shares_prompts` is false, each route has separate
    prompt prefixes in a server's cache.
    """

    sampler: Sampler
    style: PromptStyle
    keep: RetainedIds = "prefix"
    shares_prompts: bool = True
    unit_costs: ByRole[UnitCosts] = field(default_factory=dict)
    may_be_complete: Callable[[str], bool] = lambda text: True  # of the text of a solution
    clock: Clock = time.perf_counter  # for the models in this process


class LocalModel:
    """A model in this process. Its writers share a cache."""

    sends_token_stats = True

    def __init__(self, backend: Backend, display_name: str) -> None:
        self._backend, self.display_name = backend, display_name
        self._cache: KvCache | None = None
        self.card, self.chat_template = backend.card, backend.chat_template

    def writer(self, role: ModelRole, writing: WriterOptions, *, keep_token_stats: bool = False) -> Writer:
        if self._cache is None:
            self._cache = KvCache(self._backend, writing.style, keep=writing.keep)
        costs = writing.unit_costs.get(role)
        planner = Planner(costs, prompt_lookup=role == "target") if costs else None
        return Engine(
            role, self._cache, writing.sampler, keep_token_stats=keep_token_stats, planner=planner, clock=writing.clock
        )

    def read_shared(self, problem: Problem, concurrency: int) -> None:
        """Prefill the prefix of all prompts with this problem's settings, in each slot. A model without a writer has no prompts.

        If the prefix does not fit in the context, each problem reports this itself.
        """
        if self._cache is not None:
            with contextlib.suppress(ProblemError):
                for slot in range(concurrency):
                    self._cache.read_shared(slot, problem)

    def rater(self, style: PrmStyle, clock: Clock) -> Rater:
        """Return a rater that uses this process reward model. Raises ModelUnsupportedError if the model cannot rate steps."""
        rater = PrmRater(self._backend, style, clock=clock)
        rater.check()
        return rater

    def prompt(self, style: PromptStyle) -> ChatPrompt:
        """Return the prompt. Raises TemplateError if the chat template cannot be used."""
        return chat_prompt(self._backend, style)

    def describe(self) -> str:
        card = self.card
        layers = {0: "CPU", -1: "all layers on the GPU"}.get(card.gpu_layers, f"{card.gpu_layers} layers on the GPU")
        threads = formatting.count(card.threads, "thread")
        context = f"context {card.context_size}" + (f", KV cache {card.kv_cache}" if card.kv_cache else "")
        return f"{card.name} ({card.description}; {context}, {threads}, {layers})"


class RemoteModel:
    """A model on a server, with the same methods as `LocalModel`."""

    def __init__(self, model: ServedModel) -> None:
        self._model, self.display_name = model, model.card.name
        self.card, self.chat_template, self.served_facts = model.card, model.source.template, model.facts
        self.sends_token_stats = bool(model.num_alternatives)

    def writer(self, role: ModelRole, writing: WriterOptions, *, keep_token_stats: bool = False) -> Writer:
        kind = ChatWriter if isinstance(self._model.dialect, Chat) else ServedWriter
        return kind(
            role,
            self._model,
            writing.sampler,
            writing.style,
            keep_token_stats=keep_token_stats,
            shares_prompts=writing.shares_prompts,
            may_be_complete=writing.may_be_complete,
        )

    def prompt(self, style: PromptStyle) -> ChatPrompt:
        """Return the prompt, which may require a request to the server. Raises TemplateError, ServerError or ServerRequestError."""
        return self._model.prompt(style)

    def describe(self) -> str:
        return self._model.description


Model = LocalModel | RemoteModel


class Writers:
    """Creates writers. Each route has its own writers, because an engine learns from the text that it writes.

    Writers that share a model may run one after another but must not alternate within a problem.
    """

    def __init__(self, models: ByRole[Model], writing: WriterOptions) -> None:
        self._models = models
        self._writing = writing
        self._made: dict[tuple[ModelRole, Route | None], Writer] = {}

    def __call__(self, route: Route | None) -> dict[ModelRole, Writer]:
        """Return the writers of a route. If `route` is None, return writers that all routes share."""
        roles = route.policy.models if route else (*WRITING, "check")
        return {role: self._writer(role, route) for role in roles if role in self._models}

    def _writer(self, role: ModelRole, route: Route | None) -> Writer:
        if (role, route) not in self._made:
            keep = role == "draft" and (route is None or route.policy.reads_token_stats)
            self._made[role, route] = self._models[role].writer(role, self._writing, keep_token_stats=keep)
        return self._made[role, route]


class OpenModels:
    """The models of a decision. `by_role` is empty until `load`; `threads` contains the threads of the models on this machine.

    `concurrency` problems are solved at once. The writers, and the `writing` options, exist once the models are loaded.
    """

    by_role: dict[ModelRole, Model]
    writing: WriterOptions
    writers: Writers

    def __init__(
        self, request: Request, decided: Setup, open_served: Callable[[ModelRole], RemoteModel], most: int | None
    ) -> None:
        """Choose the concurrency, at most `most`."""
        self._request, self._decided, self._open_served = request, decided, open_served
        self._stack = contextlib.ExitStack()
        self.by_role = {}
        given = LoadOptions(threads=request.options.threads)
        self.threads: dict[ModelRole, int] = {
            role: threads_without_costs(model.source, given) if given.threads else model.threads
            for role, model in decided.models.items()
            if model.threads
        }
        paths = [path for source in decided.sources.values() for path in local_files(source)]
        self._file_states = {path: state_of(path) for path in paths}
        asked = request.options.concurrency or decided.concurrency
        self.concurrency = min(asked, most or asked)

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
        sources = self._decided.sources
        check_memory(self._memory_needed, self.concurrency)
        for role, source in sources.items():  # servers first, because files take time to load
            if is_served(source):
                self.by_role[role] = remote = self._open_served(role)
                self._check_server(role, remote)
        self.check_token_stats(policies)
        for role, source in sources.items():
            if not is_served(source):
                name = display_name(source)
                progress = partial(display.loading, f"loading {role}", name)
                self.by_role[role] = self._load_file(role, name, progress)
        self.by_role = {role: self.by_role[role] for role in sources}
        request, costs = self._request, self._decided.unit_costs
        self.writing = WriterOptions(
            self._decided.settings.sampler,
            self._style,
            "prefix" if request.loads == "needed" else "conversation",
            len(self._decided.routes) == 1,
            costs,
            request.task.may_be_complete,
            sparing(clock_for(model.card for model in self.by_role.values())),
        )
        self.writers = Writers(self.by_role, self.writing)

    @property
    def _style(self) -> PromptStyle:
        return PromptStyle(self._decided.settings.system, self._request.task.step_end)

    @property
    def descriptions(self) -> dict[ModelRole, LoadedModel]:
        """What the loaded models said about themselves, for run.json."""
        found: dict[ModelRole, LoadedModel] = {}
        for role, model in self.by_role.items():
            template = model.chat_template
            digest = None if template is None else hashlib.sha256(template.encode()).hexdigest()
            found[role] = LoadedModel(name=model.card.name, description=model.card.description, chat_template_sha256=digest)
        return found

    def check_token_stats(self, policies: Iterable[Policy]) -> None:
        """Raise ServerError if the draft's server does not send the log-probabilities that a policy needs."""
        needing = [policy.name for policy in policies if policy.reads_token_stats]
        if needing and "draft" in self.by_role and not self.by_role["draft"].sends_token_stats:
            raise ServerError(
                f"policy {needing[0]} needs log-probabilities, but {self._decided.sources['draft']} does not send them",
                "enable log-probabilities on the server, or use a policy that does not need them: random, rsd, "
                "draft, target",
            )

    def prompts(self) -> dict[str, ChatPrompt]:
        """Return the prompts of the draft and the target, by name."""
        sources = self._decided.sources
        return {sources[role]: self.by_role[role].prompt(self._style) for role in WRITING if role in self.by_role}

    def scheduler(self, route: Route | None = None, policy: Policy | None = None) -> Scheduler:
        """Return a scheduler for one route. If `route` is None, jobs may have different routes, and rewards as `policy` needs.

        Raises ModelUnsupportedError if the process reward model cannot rate steps.
        """
        writers, policy = self.writers(route), route.policy if route else policy
        speculator = as_speculator(writers.get("draft"))
        return Scheduler(writers, concurrency=self.concurrency, rater=self._rater(policy), speculator=speculator)

    def collector(self, policy: Policy) -> Scheduler:
        """Return a scheduler for the collection of states. If the target continues steps for rewards, it is greedy."""
        writers, rater = self.writers(None), self._rater(policy)
        if rater is None:
            greedy = replace(self.writing, sampler=Sampler(), unit_costs={})
            writers["target"] = self.by_role["target"].writer("target", greedy)
        return Scheduler(writers, concurrency=self.concurrency, rater=rater)

    def read_shared(self, problem: Problem) -> None:
        """Prefill the prefix of all prompts in the models on this machine, once their writers exist.

        Otherwise, the first policy would pay for it.
        """
        for model in self.by_role.values():
            if isinstance(model, LocalModel):
                model.read_shared(problem, self.concurrency)

    def _rater(self, policy: Policy | None) -> Rater | None:
        """Return the rater, if this policy needs a process reward model."""
        rewards = {"prm": "prm", "any": self._decided.settings.reward}
        return self._prm_rater if policy and policy.reward and rewards[policy.reward] == "prm" else None

    @cached_property
    def _prm_rater(self) -> Rater | None:
        prm, is_own = self.by_role.get("prm"), is_built_in(self._decided.sources.get("prm", ""))
        return prm.rater("steps" if is_own else "turns", self.writing.clock) if isinstance(prm, LocalModel) else None

    # --- loading

    def _load_file(self, role: ModelRole, name: str, progress: Callable[[float], None]) -> LocalModel:
        model, load = self._decided.models[role], self._decided.settings.load
        options = replace(
            load,
            context_size=model.context_size,
            threads=self.threads.get(role),
            num_sequences=self.concurrency,
            rollback=self._rollback.get(role, 0),
            template_variables={} if role == "prm" else load.template_variables,
        )
        path = str(next(iter(local_files(model.source)), model.source))
        backend = self._stack.enter_context(contextlib.closing(open_model(path, options, progress)))
        return LocalModel(backend, name)

    def _check_server(self, role: ModelRole, remote: RemoteModel) -> None:
        before: Fields = self._decided.models[role].served or {}
        now = remote.served_facts
        for name in before:
            if before[name] != now.get(name):
                raise UsageError(
                    f"{role} server: {name} changed from {before[name]} to {now.get(name)} since this run began",
                    "serve the same model with the same settings, or use another path (--output)",
                )

    @property
    def _rollback(self) -> dict[ModelRole, int]:
        target = self._decided.models.get("target")  # no other model verifies draft tokens
        return {"target": rollback_of(target.source, target.costs)} if target else {}

    @property
    def _memory_needed(self) -> Need:
        contexts = {role: model.context_size for role, model in self._decided.models.items()}
        return memory_needed(self._decided.sources, self._decided.settings.load, self._rollback, contexts)


def served_models(request: Request, display: Display, stack: contextlib.ExitStack) -> Callable[[ModelRole], RemoteModel]:
    """Return a function that opens a model on a server. Each server is asked once, when its model is first needed.

    The function raises ServerError if the server cannot be used.
    """

    @functools.cache
    def connection() -> "Connection":
        from arbitrage_cli.inference.servers.connection import Connection  # slow to import

        return stack.enter_context(contextlib.closing(Connection(is_serving=request.loads == "served")))

    @functools.cache
    def open_model_of(role: ModelRole) -> RemoteModel:
        from arbitrage_cli.inference.servers.model import open_served

        source = request.named.served[role]
        display.loading("asking server", source.address.host)
        is_greedy, continues = not request.options.temperature, not request.writes_whole
        return RemoteModel(open_served(connection(), source, role, is_greedy=is_greedy, continues=continues))

    return open_model_of
