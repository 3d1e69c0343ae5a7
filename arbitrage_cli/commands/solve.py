"""`arbitrage solve`: one problem, or many, shared between a draft and a target."""

import contextlib
import math
from collections.abc import Mapping
from typing import Annotated

import typer

from arbitrage_cli.arbitrage import POLICIES, Flow, Policy
from arbitrage_cli.backends import Options
from arbitrage_cli.commands import options as shared
from arbitrage_cli.commands.output import choose_display, log_to
from arbitrage_cli.commands.problems import Problems
from arbitrage_cli.engine import Engine
from arbitrage_cli.errors import UsageError
from arbitrage_cli.pairs import is_toy, open_model
from arbitrage_cli.prompts import INSTRUCTIONS
from arbitrage_cli.reporters import Display, safe
from arbitrage_cli.runs import RunInfo, answer, problem_error, to_json
from arbitrage_cli.sampling import Sampler
from arbitrage_cli.scheduler import Scheduler
from arbitrage_cli.types import Finished, Limits, ModelRole, Trace

SOME_FAILED = 1


def solve(
    problem: Annotated[str | None, typer.Argument(help="The problem, or - to read problems from standard input.")] = None,
    input_file: Annotated[
        str | None,
        typer.Option("--input", "-i", metavar="FILE", help="Problems: one a line, or JSONL. - is standard input."),
    ] = None,
    draft: shared.Draft = None,
    target: shared.Target = None,
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
    chosen = _policy(policy)
    threshold = _threshold(chosen, tau)
    sources = _sources(chosen, draft, target)
    load = Options(ctx, threads, gpu_layers, flash_attention, kv_type.value)
    sampler = Sampler(temperature, top_p, seed)
    with contextlib.ExitStack() as stack:
        problems = Problems(problem, input_file, stack)
        display = stack.enter_context(contextlib.closing(choose_display(quiet=quiet, verbose=verbose)))
        stack.enter_context(log_to(display, verbose=verbose, debug=debug))
        engines = _open_engines(sources, load, sampler, system, chosen, display, stack)
        run = _run_info(chosen, threshold, sampler, sources, engines, problems)

        def make_flow(trace: Trace) -> Flow:
            return chosen.flow(trace, threshold, seed)

        display.begin(run)
        scheduler = Scheduler(engines, make_flow, Limits(max_steps, max_tokens, max_step_tokens))
        # Closed before the models are: a run that is broken off still has problems in their memory.
        events = stack.enter_context(contextlib.closing(scheduler.run(problems.usable(display))))
        num_failed = 0
        for event in events:
            display.handle(event)
            if isinstance(event, Finished):
                num_failed += _tell(event, run, display, as_json=json_lines or not problems.is_single)
    if num_failed or problems.num_unusable:
        raise typer.Exit(SOME_FAILED)


def _policy(name: str) -> Policy:
    if name not in POLICIES:
        raise UsageError(f"unknown policy '{name}'", "known policies: " + ", ".join(POLICIES))
    return POLICIES[name]


def _threshold(policy: Policy, tau: float | None) -> float | None:
    if tau is not None and math.isnan(tau):
        raise UsageError("--tau is not a number", "give a number, or inf")
    if policy.default_tau is None:
        return None
    return policy.default_tau if tau is None else tau


def _sources(policy: Policy, draft: str | None, target: str | None) -> dict[ModelRole, str]:
    """The models that the policy needs, draft first."""
    given: dict[ModelRole, str | None] = {"draft": draft, "target": target}
    sources: dict[ModelRole, str] = {}
    for role in policy.models:
        source = given[role]
        if not source:
            raise UsageError(
                f"policy {policy.name} needs a {role} model",
                f"give --{role} MODEL.gguf; or try the scripted demo: --draft scripted:draft --target scripted:target",
            )
        sources[role] = source
    return sources


def _open_engines(
    sources: Mapping[ModelRole, str],
    load: Options,
    sampler: Sampler,
    instructions: str,
    policy: Policy,
    display: Display,
    stack: contextlib.ExitStack,
) -> dict[ModelRole, Engine]:
    engines: dict[ModelRole, Engine] = {}
    for role, source in sources.items():

        def progress(fraction: float, role: ModelRole = role, source: str = source) -> None:
            display.loading(role, source, fraction)

        backend = stack.enter_context(contextlib.closing(open_model(source, load, progress)))
        evidence = role == "draft" and policy.number is not None
        engines[role] = Engine(role, backend, sampler, instructions=instructions, keep_evidence=evidence)
        engines[role].measure()
    return engines


def _run_info(
    policy: Policy,
    tau: float | None,
    sampler: Sampler,
    sources: Mapping[ModelRole, str],
    engines: Mapping[ModelRole, Engine],
    problems: Problems,
) -> RunInfo:
    return RunInfo(
        policy=policy.name,
        number=policy.number,
        tau=tau,
        temperature=sampler.temperature,
        seed=sampler.seed,
        models=sources,
        descriptions={role: _describe(engine) for role, engine in engines.items()},
        is_toy=any(map(is_toy, sources.values())),
        num_problems=1 if problems.is_single else None,
    )


def _describe(engine: Engine) -> str:
    card = engine.card
    layers = {0: "CPU", -1: "all layers on the GPU"}.get(card.gpu_layers, f"{card.gpu_layers} layers on the GPU")
    threads = f"{card.threads} thread{'s' if card.threads > 1 else ''}"
    return f"{card.name} ({card.description}; context {card.context_size}, {threads}, {layers})"


def _tell(finished: Finished, run: RunInfo, display: Display, *, as_json: bool) -> bool:
    """Write a problem's result to stdout, and its error if it has one to the display. Returns whether it failed."""
    error = problem_error(finished)
    if error:
        message, hint = error
        display.note(f"problem {finished.trace.problem.id}: {message}" + (f"; {hint}" if hint else ""))
    if as_json:
        display.result(to_json(finished, run))
    elif finished.trace.decisions:
        display.result(safe(answer(finished.trace) or finished.trace.text.strip()))
    return error is not None
