"""`arbitrage solve`: one problem, or many, shared between a draft and a target."""

import contextlib
import logging
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Annotated

import typer

from arbitrage_cli.arbitrage import Flow
from arbitrage_cli.cli import options as shared
from arbitrage_cli.cli.output import InOrder, choose_display, log_to
from arbitrage_cli.cli.problems import Problems
from arbitrage_cli.cli.sources import (
    head_named,
    instructions,
    name_models,
    needed_models,
    pair_named,
    refuse_ignored,
    style_of_prm,
    template_variables,
    warnings_about,
)
from arbitrage_cli.display.protocol import Display
from arbitrage_cli.display.text import safe
from arbitrage_cli.runs.records import RunInfo, answer, problem_error, to_json
from arbitrage_cli.types import Event, Finished, Limits, Started, Trace

log = logging.getLogger("arbitrage.solve")


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
    prm: shared.RewardModel = None,
    prm_style: shared.PrmStyle = None,
    head: shared.HeadFile = None,
    offline: shared.Offline = False,
    policy: shared.PolicyName = None,
    tau: shared.Tau = None,
    budget: shared.Budget = None,
    early_stop: shared.EarlyStop = None,
    system: shared.Instructions = None,
    chat_template_kwargs: shared.TemplateVariables = None,
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
    kv_type: shared.KvCacheType = shared.KvType.auto,
    concurrency: shared.Concurrency = "1",
    json_lines: shared.Json = False,
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
    debug: shared.Debug = False,
) -> None:
    """Solve a problem step by step with two models.

    The answer goes to standard output, the view of every step to standard error. Problems from a pipe or a file give one
    JSON object a line, in their order, each as soon as it and all before it are finished.
    """
    # Not at the top: NumPy and the engines take longer to import than --help may take.
    from arbitrage_cli.cli.routing import (
        RoutingOptions,
        about_concurrency,
        choose_routing,
        find_head,
        make_rater,
        make_router,
        reads_hidden,
        resolve_conflicts,
        sequences,
        stops_early,
        whose_costs,
    )
    from arbitrage_cli.cli.session import fetch, make_engines, open_backends, run_info
    from arbitrage_cli.inference.sampling import Sampler
    from arbitrage_cli.inference.scheduler import Scheduler
    from arbitrage_cli.tuning.memory import MOST, choose_concurrency, memory_needed
    from arbitrage_cli.tuning.placement import load_options, place

    named = pair_named(context, pair, draft=draft, target=target)
    models = name_models(context, draft=draft, target=target, prm=prm, pair=named)
    whose = head_named(head, named, models)
    trained = find_head(whose)
    variables = template_variables(chat_template_kwargs, named)
    load = load_options(named, ctx, threads, gpu_layers, flash_attention, kv_type.value, variables)
    placement = place(models, load)
    wanted = resolve_conflicts(context, RoutingOptions(policy, tau, budget, head), trained)
    chosen, threshold, slow = choose_routing(wanted, trained, whose, placement.costs, early_stop=early_stop)
    may_stop = stops_early(early_stop, [chosen], trained, whose, placement.costs)
    refuse_ignored(context, chosen)
    sources = needed_models([chosen], models)
    prompt = instructions(system, named)
    sampler = Sampler(temperature, top_p, seed)
    limits = Limits(max_steps, max_tokens, max_step_tokens)
    also = {"top_p": top_p, **asdict(limits), "system": prompt, "kv_type": kv_type.value}
    costs_of = whose_costs(chosen, wanted.tau, wanted.budget, placement.costs)
    if load.template_variables:
        also["chat_template_kwargs"] = load.template_variables
    if chosen.needs_head and trained:
        also |= {"head": trained.card.name, "head_sha256": trained.sha256, "tau_costs": costs_of}
    if may_stop is not None:
        also["early_stop"] = may_stop
    with contextlib.ExitStack() as stack:
        problems = Problems(problem, input_file, stack)
        display = stack.enter_context(contextlib.closing(choose_display(quiet=quiet, verbose=verbose)))
        stack.enter_context(log_to(display, verbose=verbose, debug=debug))
        # Before the models take their time: there may be none.
        num_known = problems.look_ahead(display, 1 if concurrency == "1" else MOST)
        if not num_known:
            raise typer.Exit(shared.SOME_FAILED)
        if costs_of:
            log.info("named taus are those by the costs of %s", costs_of)
        warnings = warnings_about(sources, named, whose if chosen.needs_head else None, threads=threads)
        for warning in (*warnings, *([slow] if slow else [])):
            display.note(warning)
        found = fetch(sources, display, offline=offline)
        each = sequences([chosen], None)
        most = 1 if problems.is_typed else num_known if problems.ended else MOST
        at_once = choose_concurrency(concurrency, lambda: memory_needed(found, load, each), most=most)
        for note in about_concurrency([chosen], at_once):
            display.note(note)
        num_sequences = sequences([chosen], None, concurrency=at_once)
        load = replace(load, hidden_states=reads_hidden([chosen], trained))
        backends = open_backends(sources, found, load, place(found, load).threads, display, stack, num_sequences)
        engines = make_engines(backends, sampler, prompt, chosen)
        rater = make_rater(chosen, backends, prm_style=style_of_prm(prm_style, models["prm"], named), concurrency=at_once)
        router = make_router(chosen, trained, backends, found)
        run = run_info(
            chosen,
            threshold,
            sampler,
            sources,
            engines,
            also | {"concurrency": at_once},
            num_problems=1 if problems.is_single else None,
            concurrency=at_once,
        )

        def make_flow(trace: Trace) -> Flow:
            return chosen.flow(trace, threshold, seed, router, stops_early=bool(may_stop))

        display.begin(run)
        scheduler = Scheduler(engines, make_flow, limits, concurrency=at_once, rater=rater, speculator=engines.get("draft"))
        # Closed before the models are: a run that is broken off still has problems in their memory.
        events = stack.enter_context(contextlib.closing(scheduler.run(problems, problems.is_ready)))
        num_failed = _follow(events, run, display, as_json=json_lines or not problems.is_single)
    if num_failed or problems.num_unusable:
        raise typer.Exit(shared.SOME_FAILED)


def _follow(events: Iterable[Event], run: RunInfo, display: Display, *, as_json: bool) -> int:
    """Show everything that happens, and write each result when its turn has come. Returns how many problems failed."""
    num_failed = 0
    with InOrder(display.result) as results:
        for event in events:
            display.handle(event)
            if isinstance(event, Started):
                results.started(event.trace)
            elif isinstance(event, Finished):
                num_failed += problem_error(event) is not None
                results.finished(event.trace, _result(event, run, as_json=as_json))
    display.end()
    return num_failed


def _result(finished: Finished, run: RunInfo, *, as_json: bool) -> str | None:
    """What is written to standard output of a problem; None if nothing came of it."""
    if as_json:
        return to_json(finished, run)
    return safe(answer(finished.trace) or finished.trace.text.strip()) if finished.trace.decisions else None
