"""`arbitrage solve`: one problem, or many, shared between a draft and a target."""

import contextlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Annotated

import typer

from arbitrage_cli.arbitrage import POLICIES, Flow, Policy
from arbitrage_cli.commands import options as shared
from arbitrage_cli.commands.output import choose_display, log_to
from arbitrage_cli.commands.problems import Problems
from arbitrage_cli.commands.settings import user_folder
from arbitrage_cli.errors import UsageError
from arbitrage_cli.pairs import Pair, find_pair, read_pairs
from arbitrage_cli.prompts import INSTRUCTIONS
from arbitrage_cli.reporters import Display, safe
from arbitrage_cli.runs import RunInfo, answer, problem_error, to_json
from arbitrage_cli.summary import Tally
from arbitrage_cli.types import Decided, Event, Finished, Limits, ModelRole, Trace

SOME_FAILED = 1


def solve(
    context: typer.Context,
    problem: Annotated[str | None, typer.Argument(help="The problem, or - to read problems from standard input.")] = None,
    input_file: Annotated[
        str | None,
        typer.Option("--input", "-i", metavar="FILE", help="Problems: one a line, or JSONL. - is standard input."),
    ] = None,
    draft: shared.Draft = None,
    target: shared.Target = None,
    pair: shared.PairName = None,
    offline: shared.Offline = False,
    policy: shared.PolicyName = "entropy",
    tau: shared.Tau = None,
    system: shared.Instructions = INSTRUCTIONS,
    max_steps: shared.MaxSteps = shared.DEFAULTS.max_steps,
    max_tokens: shared.MaxTokens = shared.DEFAULTS.max_tokens,
    max_step_tokens: shared.MaxStepTokens = shared.DEFAULTS.max_step_tokens,
    temperature: shared.Temperature = 0.0,
    top_p: shared.TopP = 1.0,
    seed: shared.Seed = 0,
    threads: shared.Threads = None,
    gpu_layers: shared.GpuLayers = None,
    ctx: shared.ContextSize = None,
    flash_attention: shared.FlashAttention = None,
    kv_type: shared.KvCacheType = shared.KvType.f16,
    json_lines: shared.Json = False,
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
    debug: shared.Debug = False,
) -> None:
    """Solve a problem step by step with two models.

    The answer goes to standard output, the view of every step to standard error. Problems from a pipe or a file give one
    JSON object a line.
    """
    # Not at the top: NumPy and the engines take longer to import than --help may take.
    from arbitrage_cli.backends import Options
    from arbitrage_cli.commands.session import open_engines, run_info
    from arbitrage_cli.sampling import Sampler
    from arbitrage_cli.scheduler import Scheduler

    chosen = _policy(policy)
    threshold = _threshold(chosen, tau)
    named = find_pair(pair, read_pairs(user_folder() / "pairs.toml")) if pair else None
    sources = _sources(chosen, _named(context, draft=draft, target=target, pair=named))
    context_size = named.ctx if named and ctx is None else ctx
    load = Options(context_size, threads, gpu_layers, flash_attention, kv_type.value)
    sampler = Sampler(temperature, top_p, seed)
    limits = Limits(max_steps, max_tokens, max_step_tokens)
    also = {"top_p": top_p, **asdict(limits), "system": system, "kv_type": kv_type.value}
    with contextlib.ExitStack() as stack:
        problems = Problems(problem, input_file, stack)
        display = stack.enter_context(contextlib.closing(choose_display(quiet=quiet, verbose=verbose)))
        stack.enter_context(log_to(display, verbose=verbose, debug=debug))
        usable = problems.usable(display)
        first = next(usable, None)  # before the models take their time: there may be none
        if first is None:
            raise typer.Exit(SOME_FAILED)
        engines = open_engines(sources, load, sampler, system, chosen, display, stack, offline=offline)
        run = run_info(chosen, threshold, sampler, sources, engines, also, num_problems=1 if problems.is_single else None)

        def make_flow(trace: Trace) -> Flow:
            return chosen.flow(trace, threshold, seed)

        display.begin(run)
        scheduler = Scheduler(engines, make_flow, limits)
        # Closed before the models are: a run that is broken off still has problems in their memory.
        events = stack.enter_context(contextlib.closing(scheduler.run(itertools.chain([first], usable))))
        num_failed = _follow(events, run, display, as_json=json_lines or not problems.is_single)
    if num_failed or problems.num_unusable:
        raise typer.Exit(SOME_FAILED)


def _policy(name: str) -> Policy:
    if name not in POLICIES:
        raise UsageError(f"unknown policy '{name}'", "known policies: " + ", ".join(POLICIES))
    return POLICIES[name]


def _threshold(policy: Policy, tau: float | None) -> float | None:
    if policy.default_tau is None:
        return None
    return policy.default_tau if tau is None else tau


def _named(
    context: typer.Context, *, draft: str | None, target: str | None, pair: Pair | None
) -> Mapping[ModelRole, str | None]:
    """The model of each role. One named by itself wins over the pair's, unless the pair was named in a stronger place."""
    named: dict[ModelRole, str | None] = {"draft": draft, "target": target}
    if pair is None:
        return named
    of_pair: dict[ModelRole, str] = {"draft": pair.draft, "target": pair.target}
    strength = _strength(context, "pair")
    return {
        role: source if source and _strength(context, role) >= strength else of_pair[role] for role, source in named.items()
    }


def _strength(context: typer.Context, parameter: str) -> int:
    """How near to the user a value was given: as a flag, in the environment, in a settings file, nowhere."""
    source = context.get_parameter_source(parameter)
    places = ("DEFAULT_MAP", "ENVIRONMENT", "COMMANDLINE")
    return places.index(source.name) + 1 if source and source.name in places else 0


def _sources(policy: Policy, named: Mapping[ModelRole, str | None]) -> dict[ModelRole, str]:
    """The models that the policy needs, draft first."""
    sources: dict[ModelRole, str] = {}
    for role in policy.models:
        source = named[role]
        if not source:
            raise UsageError(
                f"policy {policy.name} needs a {role} model",
                f"give --{role} MODEL.gguf, or a --pair of arbitrage models list; or try the demo: --pair scripted",
            )
        sources[role] = source
    return sources


def _follow(events: Iterable[Event], run: RunInfo, display: Display, *, as_json: bool) -> int:
    """Show everything that happens, and write each result when it is there. Returns how many problems failed."""
    figures, num_finished, num_failed = Tally(), 0, 0
    for event in events:
        display.handle(event)
        if isinstance(event, Decided):
            figures = figures.add(event.decision)
        elif isinstance(event, Finished):
            num_finished += 1
            num_failed += _tell(event, run, display, as_json=as_json)
    display.end(figures, num_finished - num_failed, num_failed)
    return num_failed


def _tell(finished: Finished, run: RunInfo, display: Display, *, as_json: bool) -> bool:
    """Write a problem's result to standard output. Returns whether it failed."""
    if as_json:
        display.result(to_json(finished, run))
    elif finished.trace.decisions:
        display.result(safe(answer(finished.trace) or finished.trace.text.strip()))
    return problem_error(finished) is not None
