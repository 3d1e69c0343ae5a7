"""Writers for every policy and sample of a run, over models that are loaded once. Knows no file and no terminal."""

from collections.abc import Mapping
from dataclasses import replace

from arbitrage_cli.inference.backend import Backend
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.kv_cache import Cache, Keep
from arbitrage_cli.inference.proposals import Proposals
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Writer
from arbitrage_cli.inference.servers.model import ServedModel
from arbitrage_cli.inference.servers.writer import ServedWriter
from arbitrage_cli.inference.step_text import BLANK_LINE, StepEnd
from arbitrage_cli.routing.route import Route
from arbitrage_cli.types import Cost, ModelRole


class Engines:
    """Each route has its own writers, since an engine learns from what it writes: what one policy costs does not depend on
    which others run beside it. Each is made, and knows its model's speed, before it is timed. With `shares_prompts` false, the
    routes do not find each other's prompts in a server's cache either.

    Engines of one model may follow each other, not take turns within a problem.
    """

    def __init__(
        self,
        models: Mapping[ModelRole, Backend | ServedModel],
        sampler: Sampler,
        instructions: str,
        keep: Keep = "beginning",
        *,
        step_end: StepEnd = BLANK_LINE,
        shares_prompts: bool = True,
    ) -> None:
        self._models = models
        self._sampler = sampler
        self._instructions = instructions
        self._keep = keep
        self._step_end = step_end
        self._shares_prompts = shares_prompts
        self._caches: dict[ModelRole, Cache] = {}
        self._made: dict[tuple[ModelRole, int, Route], Writer] = {}
        self._measured: dict[ModelRole, Cost] = {}

    def __call__(self, route: Route, sample: int = 0) -> dict[ModelRole, Writer]:
        """The route's writers. Sample k draws with the seed + k; the draft keeps token statistics only if they are read."""
        return {role: self._writer(role, route, sample) for role in route.policy.models}

    def _writer(self, role: ModelRole, route: Route, sample: int) -> Writer:
        key = (role, sample, route)
        if key not in self._made:
            self._made[key] = self._make(role, route, sample)
        return self._made[key]

    def _make(self, role: ModelRole, route: Route, sample: int) -> Writer:
        model, sampler = self._models[role], replace(self._sampler, seed=self._sampler.seed + sample)
        keep = role == "draft" and route.policy.reads_token_stats
        if isinstance(model, ServedModel):
            shares = self._shares_prompts
            return ServedWriter(
                role, model, sampler, self._instructions, self._step_end, keep_token_stats=keep, shares_prompts=shares
            )
        engine = Engine(role, self._cache(role, model), sampler, keep_token_stats=keep, proposals=_proposals_of(role))
        if len(route.policy.models) > 1 and (role == "target" or not route.policy.score_is):
            self._tell_speed(role, engine)
        return engine

    def _cache(self, role: ModelRole, backend: Backend) -> Cache:
        """The model's cache, which its engines share: what it keeps for the next problem is read once."""
        if role not in self._caches:
            self._caches[role] = Cache(backend, self._instructions, step_end=self._step_end, keep=self._keep)
        return self._caches[role]

    def _tell_speed(self, role: ModelRole, engine: Engine) -> None:
        """For the estimate of the target's time alone, and for what the draft's guesses cost."""
        if role in self._measured:
            engine.use_measured(self._measured[role])
        else:
            self._measured[role] = engine.measure()


def make_writer(
    role: ModelRole,
    model: Backend | ServedModel,
    sampler: Sampler,
    instructions: str,
    step_end: StepEnd = BLANK_LINE,
    *,
    first_sequence: int = 0,
) -> Engine | ServedWriter:
    """A writer that shares nothing with others. That of the draft keeps token statistics."""
    keep = role == "draft"
    if isinstance(model, ServedModel):
        return ServedWriter(role, model, sampler, instructions, step_end, keep_token_stats=keep)
    cache = Cache(model, instructions, step_end=step_end, first_sequence=first_sequence)
    return Engine(role, cache, sampler, keep_token_stats=keep, proposals=_proposals_of(role))


def _proposals_of(role: ModelRole) -> Proposals:
    return "all" if role == "target" else "drafted"
