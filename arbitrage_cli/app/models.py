"""The models of a command, in this process or on a server, and the writers that they provide."""

import contextlib
import time
from dataclasses import field

from arbitrage_cli.errors import ProblemError
from arbitrage_cli.inference.backend import ALL_LAYERS, Backend, Clock
from arbitrage_cli.inference.chat_template import ChatPrompt, PromptStyle
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.kv_cache import KvCache, RetainedIds, chat_prompt
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Rater, Writer
from arbitrage_cli.inference.servers.model import ServedModel
from arbitrage_cli.inference.servers.writer import ServedWriter
from arbitrage_cli.inference.speculation import Planner
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.numbers import formatting
from arbitrage_cli.rewards import PrmRater, PrmStyle
from arbitrage_cli.routing.route import Route
from arbitrage_cli.types import WRITING, ByRole, ModelRole, Problem, frozen


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
    clock: Clock = time.perf_counter  # for the models in this process


class LocalModel:
    """A model in this process. Its writers share a cache."""

    sends_token_stats = True
    cannot_continue = None
    server = None

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

    @property
    def threads(self) -> int:
        """The number of threads, or 0 if all layers are on a GPU."""
        return 0 if self.card.gpu_layers == ALL_LAYERS else self.card.threads

    def describe(self) -> str:
        card = self.card
        layers = {0: "CPU", -1: "all layers on the GPU"}.get(card.gpu_layers, f"{card.gpu_layers} layers on the GPU")
        threads = formatting.count(card.threads, "thread")
        context = f"context {card.context_size}" + (f", KV cache {card.kv_cache}" if card.kv_cache else "")
        return f"{card.name} ({card.description}; {context}, {threads}, {layers})"


class RemoteModel:
    """A model on a server, with the same methods as `LocalModel`."""

    threads = 0  # on this machine

    def __init__(self, model: ServedModel) -> None:
        self._model, self.display_name = model, model.card.name
        self.card, self.chat_template, self.served_facts = model.card, model.source.template, model.facts
        self.sends_token_stats = bool(model.num_alternatives)
        self.cannot_continue = model.cannot_continue
        self.server = model.server.name

    def writer(self, role: ModelRole, writing: WriterOptions, *, keep_token_stats: bool = False) -> Writer:
        return ServedWriter(
            role,
            self._model,
            writing.sampler,
            writing.style,
            keep_token_stats=keep_token_stats and self.sends_token_stats,  # shared by policies that do not need them
            shares_prompts=writing.shares_prompts,
        )

    def prompt(self, style: PromptStyle) -> ChatPrompt:
        """Return the prompt, which may require a request to the server.

        Raises TemplateError, ServerError or ServerRequestError.
        """
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
