"""Engines for every policy and sample of a run, over models that are loaded once. Knows no file and no terminal."""

from collections.abc import Mapping
from dataclasses import replace

from arbitrage_cli.evaluation.benchmark import PolicyAtTau
from arbitrage_cli.inference.backend import Backend
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.kv_cache import Cache, Keep
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.types import Cost, ModelRole


class Engines:
    """Each column has its own engines, since an engine learns from what it writes: what one policy costs does not depend on
    which others run beside it. Each is made, and knows its model's speed, before it is timed.

    Engines of one model may follow each other, not take turns within a problem.
    """

    def __init__(
        self, backends: Mapping[ModelRole, Backend], sampler: Sampler, instructions: str, keep: Keep = "beginning"
    ) -> None:
        self._keep = keep
        self._backends = backends
        self._sampler = sampler
        self._instructions = instructions
        self._caches: dict[ModelRole, Cache] = {}
        self._made: dict[tuple[ModelRole, int, PolicyAtTau], Engine] = {}
        self._measured: dict[ModelRole, Cost] = {}

    def __call__(self, column: PolicyAtTau, sample: int = 0) -> dict[ModelRole, Engine]:
        """The column's engines. Sample k draws with the seed + k; the draft keeps token statistics only if they are read."""
        return {role: self._engine(role, column, sample) for role in column.policy.models}

    def _engine(self, role: ModelRole, column: PolicyAtTau, sample: int) -> Engine:
        key = (role, sample, column)
        if key not in self._made:
            self._made[key] = self._make(role, column, sample)
        return self._made[key]

    def _cache(self, role: ModelRole) -> Cache:
        """The model's cache, which its engines share: what it keeps for the next problem is read once."""
        if role not in self._caches:
            self._caches[role] = Cache(self._backends[role], self._instructions, keep=self._keep)
        return self._caches[role]

    def _make(self, role: ModelRole, column: PolicyAtTau, sample: int) -> Engine:
        engine = Engine(
            role,
            self._cache(role),
            replace(self._sampler, seed=self._sampler.seed + sample),
            keep_token_stats=role == "draft" and column.policy.reads_token_stats,
        )
        if len(column.policy.models) > 1 and (role == "target" or not column.policy.number):
            # For the estimate of the target's time alone, and for what the draft's guesses cost.
            if role in self._measured:
                engine.use_measured(self._measured[role])
            else:
                self._measured[role] = engine.measure()
        return engine
