"""Opens the models that a policy needs, as engines. Slow to import: a command does so only when there is work to do."""

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from arbitrage_cli.cli.transfers import Pace
from arbitrage_cli.display.protocol import Display
from arbitrage_cli.evaluation.benchmark import PolicyAtTau
from arbitrage_cli.inference.backend import Backend, Options
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.open import open_model
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.model_files.hub import Progress
from arbitrage_cli.model_files.pairs import find_files, is_toy
from arbitrage_cli.routing.policies import Policy
from arbitrage_cli.runs.records import RunInfo
from arbitrage_cli.tuning.memory import check_memory, memory_needed
from arbitrage_cli.types import Cost, ModelRole

log = logging.getLogger("arbitrage.session")


def make_engines(
    backends: Mapping[ModelRole, Backend], sampler: Sampler, instructions: str, policy: Policy
) -> dict[ModelRole, Engine]:
    """The engines of the models that write steps with this policy."""
    engines: dict[ModelRole, Engine] = {}
    for role in policy.models:
        token_stats = role == "draft" and policy.reads_token_stats
        engines[role] = Engine(
            role, backends[role], sampler, instructions=instructions, keep_token_stats=token_stats, keep_beginning=True
        )
    if len(engines) > 1:  # for the estimate of the target's time alone, and for what the draft's guesses cost
        for role in ("target",) if policy.number else policy.models:
            engines[role].measure()
    return engines


def open_backends(
    sources: Mapping[ModelRole, str],
    found: Mapping[ModelRole, str],
    load: Options,
    threads: Mapping[ModelRole, int],
    display: Display,
    stack: contextlib.ExitStack,
    num_sequences: Mapping[ModelRole, int],
) -> dict[ModelRole, Backend]:
    """Load the models that `fetch` found, each with its threads and for so many sequences. The stack closes them.

    Hidden states, if any are wanted, are the draft's; template variables are for those that write. Errors: ModelError, UsageError.
    """
    check_memory(memory_needed({role: found[role] for role in sources}, load, num_sequences))
    backends: dict[ModelRole, Backend] = {}
    for role, source in sources.items():

        def progress(fraction: float, role: ModelRole = role, source: str = source) -> None:
            display.loading(role, source, fraction)

        options = replace(
            load,
            threads=threads[role],
            num_sequences=num_sequences[role],
            hidden_states=load.hidden_states and role == "draft",
            template_variables={} if role == "prm" else load.template_variables,
        )
        backends[role] = stack.enter_context(contextlib.closing(open_model(found[role], options, progress)))
    templates = [backend.chat_template or "" for role, backend in backends.items() if role != "prm"]
    for name in load.template_variables:
        if not any(name in template for template in templates):
            log.warning("no chat template of these models knows '%s', of --chat-template-kwargs: it changes nothing", name)
    return backends


class Engines:
    """Engines for every column and sample of a benchmark, over models that are loaded once.

    Each column has its own, since an engine learns from what it writes: what one policy costs does not depend on which others
    are measured beside it. Each is made, and knows its model's speed, before it is measured. Engines of one model may follow
    each other but not take turns: whoever solves a problem finishes it first.
    """

    def __init__(self, backends: Mapping[ModelRole, Backend], sampler: Sampler, instructions: str) -> None:
        self._backends = backends
        self._sampler = sampler
        self._instructions = instructions
        self._made: dict[tuple[ModelRole, int, PolicyAtTau], Engine] = {}
        self._measured: dict[ModelRole, Cost] = {}

    def __call__(self, column: PolicyAtTau, sample: int) -> dict[ModelRole, Engine]:
        """The column's engines. Sample k draws with the seed + k; the draft keeps evidence only for who reads it."""
        return {role: self._engine(role, column, sample) for role in column.policy.models}

    def _engine(self, role: ModelRole, column: PolicyAtTau, sample: int) -> Engine:
        key = (role, sample, column)
        if key not in self._made:
            self._made[key] = self._make(role, column, sample)
        return self._made[key]

    def _make(self, role: ModelRole, column: PolicyAtTau, sample: int) -> Engine:
        engine = Engine(
            role,
            self._backends[role],
            replace(self._sampler, seed=self._sampler.seed + sample),
            instructions=self._instructions,
            keep_token_stats=role == "draft" and column.policy.reads_token_stats,
        )
        if role in self._measured:
            engine.know(self._measured[role])
        else:
            self._measured[role] = engine.measure()
        return engine


def fetch(sources: Mapping[ModelRole, str], display: Display, *, offline: bool) -> dict[ModelRole, str]:
    """Each role's model as a path (a demo model keeps its name): all are here, and checked, before the first is loaded."""
    pace = Pace()
    found: dict[ModelRole, str] = {}
    for role, source in sources.items():

        def watch(progress: Progress, role: ModelRole = role) -> None:
            display.loading(role, pace.words(progress), progress.done / max(progress.total, 1))

        files = find_files(source, offline=offline, watch=watch)
        found[role] = str(files[0]) if files else source
    return found


def _describe(engine: Engine) -> str:
    """One line about a loaded model: name, size, quantization, and how it runs."""
    card = engine.card
    layers = {0: "CPU", -1: "all layers on the GPU"}.get(card.gpu_layers, f"{card.gpu_layers} layers on the GPU")
    threads = f"{card.threads} thread{'s' if card.threads > 1 else ''}"
    context = f"context {card.context_size}" + (f" of {card.kv_cache}" if card.kv_cache else "")
    return f"{card.name} ({card.description}; {context}, {threads}, {layers})"


def run_info(
    policy: Policy,
    tau: float | None,
    sampler: Sampler,
    sources: Mapping[ModelRole, str],
    engines: Mapping[ModelRole, Engine],
    settings: Mapping[str, Any],
    *,
    num_problems: int | None,
    concurrency: int,
) -> RunInfo:
    """What a run is made with, as its records and displays tell it."""
    return RunInfo(
        policy=policy.name,
        number=policy.number or None,
        tau=tau,
        temperature=sampler.temperature,
        seed=sampler.seed,
        settings=settings,
        models=sources,
        descriptions={role: _describe(engine) for role, engine in engines.items()},
        is_toy=any(map(is_toy, sources.values())),
        num_problems=num_problems,
        concurrency=concurrency,
    )
