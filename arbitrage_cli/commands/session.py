"""Opens the models that a policy needs, as engines. Slow to import: a command does so only when there is work to do."""

import contextlib
from collections.abc import Mapping
from typing import Any

from arbitrage_cli.arbitrage import Policy
from arbitrage_cli.backends import Options
from arbitrage_cli.commands.transfers import Pace
from arbitrage_cli.engine import Engine
from arbitrage_cli.hub import Progress
from arbitrage_cli.pairs import find_files, is_toy, open_model
from arbitrage_cli.reporters import Display
from arbitrage_cli.runs import RunInfo
from arbitrage_cli.sampling import Sampler
from arbitrage_cli.types import ModelRole


def open_engines(
    sources: Mapping[ModelRole, str],
    load: Options,
    sampler: Sampler,
    instructions: str,
    policy: Policy,
    display: Display,
    stack: contextlib.ExitStack,
    *,
    offline: bool,
) -> dict[ModelRole, Engine]:
    """Fetch the models that are not here, and load them. The stack closes them. ModelError, UsageError."""
    found = _fetch(sources, display, offline=offline)
    engines: dict[ModelRole, Engine] = {}
    for role, source in sources.items():

        def progress(fraction: float, role: ModelRole = role, source: str = source) -> None:
            display.loading(role, source, fraction)

        backend = stack.enter_context(contextlib.closing(open_model(found[role], load, progress)))
        evidence = role == "draft" and policy.reads_evidence
        engines[role] = Engine(role, backend, sampler, instructions=instructions, keep_evidence=evidence)
    if len(engines) > 1:
        engines["target"].measure()  # what the estimate of its time alone needs, should it never be called
    return engines


def _fetch(sources: Mapping[ModelRole, str], display: Display, *, offline: bool) -> dict[ModelRole, str]:
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
    return f"{card.name} ({card.description}; context {card.context_size}, {threads}, {layers})"


def run_info(
    policy: Policy,
    tau: float | None,
    sampler: Sampler,
    sources: Mapping[ModelRole, str],
    engines: Mapping[ModelRole, Engine],
    settings: Mapping[str, Any],
    *,
    num_problems: int | None,
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
    )
