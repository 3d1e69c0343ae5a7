"""`arbitrage bench`: what routing costs in accuracy and saves in time, measured on this machine."""

import contextlib
import logging
from pathlib import Path
from typing import Annotated

import typer

from arbitrage_cli.cli import options as shared
from arbitrage_cli.cli.output import choose_display, log_to, show_figures, telling_how_to_go_on
from arbitrage_cli.cli.sources import (
    head_named,
    instructions,
    is_flag,
    name_models,
    needed_models,
    pair_named,
    reward_needed,
    setting_of,
    style_of_prm,
    template_variables,
    warnings_about,
)
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.runs.folder import RunFolder, key_of, latest
from arbitrage_cli.types import Limits

log = logging.getLogger("arbitrage.bench")
_BENCH = "Benchmark"


def bench(
    context: typer.Context,
    dataset: shared.DatasetName,
    mapping: shared.Mapped = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            envvar="ARBITRAGE_POLICY",
            metavar="NAME[@TAU],...",
            help=f"What to compare: any of {', '.join(POLICIES)}. A policy may name its own tau: entropy@0.5,entropy@1. "
            "Default: target, draft, and arbitrage (entropy for demo models).",
            rich_help_panel=_BENCH,
        ),
    ] = None,
    tau: Annotated[
        str | None,
        typer.Option(
            "--tau",
            envvar="ARBITRAGE_TAU",
            metavar="TAU,...",
            help="The taus of every policy that has one and names none. Default: one each.",
            rich_help_panel=_BENCH,
        ),
    ] = None,
    limit: shared.Limited = None,
    ids: shared.Ids = None,
    samples: Annotated[
        int,
        typer.Option(
            "--samples",
            envvar="ARBITRAGE_SAMPLES",
            min=1,
            help="Solve each problem so often; sample k has the seed + k.",
            rich_help_panel=_BENCH,
        ),
    ] = 1,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            envvar="ARBITRAGE_TIMEOUT",
            min=0.001,
            max=1e6,  # longer ones the system cannot wait for
            help="Seconds after which an attempt is given up. Default: none.",
            rich_help_panel=_BENCH,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            envvar="ARBITRAGE_OUTPUT",
            metavar="FOLDER",
            help="The run's folder. Default: one below runs/, after data set and models.",
            rich_help_panel=_BENCH,
        ),
    ] = None,
    retry_errors: Annotated[
        bool,
        typer.Option(
            "--retry-errors/--keep-errors",
            envvar="ARBITRAGE_RETRY_ERRORS",
            help="Whether a run that goes on tries what failed again.",
            rich_help_panel=_BENCH,
        ),
    ] = True,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew; what is in the folder is set aside.", rich_help_panel=_BENCH)
    ] = False,
    cost_ratio: shared.CostRatio = None,
    draft: shared.Draft = None,
    target: shared.Target = None,
    pair: shared.PairName = None,
    prm: shared.RewardModel = None,
    prm_style: shared.PrmStyle = None,
    head: shared.HeadFile = None,
    early_stop: shared.EarlyStop = None,
    reward: Annotated[
        shared.RewardSource | None,
        typer.Option(
            "--reward",
            envvar="ARBITRAGE_REWARD",
            help="What the oracle goes by: a process reward model, or whether the target gets the answer right from there.",
            rich_help_panel=_BENCH,
        ),
    ] = None,
    offline: shared.Offline = False,
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
    json_line: shared.JsonFigures = False,
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
    debug: shared.Debug = False,
) -> None:
    """Measure policies side by side on a data set: accuracy, time, and how sure both are.

    Every result is safe as soon as it is there. The same command goes on with a run that was broken off, and shows the
    figures of one that is finished. Problems, samples, policies and taus may be added to a run; anything else that results
    depend on must stay the same.

    With several problems at once (--concurrency) it measures problems a second instead of seconds a problem: a throughput
    run, which has a folder of its own.
    """
    # Not at the top: NumPy and the engines take longer to import than --help may take.
    from arbitrage_cli.cli.asked import about_names, choose_items, choose_names, folder_name, parse_columns, share_taus
    from arbitrage_cli.cli.measuring import Work, measure
    from arbitrage_cli.cli.routing import about_concurrency, find_head, sequences, stops_early
    from arbitrage_cli.cli.run_facts import Setup, concurrency_of, go_on, kept_early_stop, run_facts
    from arbitrage_cli.cli.session import fetch
    from arbitrage_cli.data.datasets import load_dataset
    from arbitrage_cli.data.rows import parse_mapping
    from arbitrage_cli.evaluation.benchmark import left, plan
    from arbitrage_cli.grading.grader import grader_version
    from arbitrage_cli.inference.sampling import Sampler
    from arbitrage_cli.tuning.memory import AUTO, MOST, choose_concurrency, memory_needed
    from arbitrage_cli.tuning.placement import load_options, place

    named = pair_named(context, pair, draft=draft, target=target)
    models = name_models(context, draft=draft, target=target, prm=prm, pair=named)
    whose = head_named(head, named, models)
    trained = find_head(whose)
    variables = template_variables(chat_template_kwargs, named)
    load = load_options(named, ctx, threads, gpu_layers, flash_attention, kv_type.value, variables)
    placement = place(models, load)
    if tau is not None and not (is_flag(context, "policy") and is_flag(context, "tau")):
        meant_for = policy if is_flag(context, "tau") else setting_of(context, "policy")
        policy, tau = share_taus(policy, tau, meant_for, trained), None
    taus_here = choose_names(policy, tau, trained, placement.costs)
    columns = parse_columns(policy, tau, trained, taus_here)
    uses_head = any(column.policy.needs_head for column in columns)
    sources = needed_models([column.policy for column in columns], models, reward)
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(contextlib.closing(choose_display(quiet=quiet)))
        stack.enter_context(log_to(display, verbose=verbose, debug=debug))
        problems = load_dataset(dataset, offline=offline, mapping=parse_mapping(mapping) if mapping else {})
        items = choose_items(problems.items, ids, limit)
        path = output or Path("runs") / folder_name(problems.name, models, named, concurrency)
        folder = stack.enter_context(RunFolder(path, fresh=fresh))
        named_taus = choose_names(policy, tau, trained, placement.costs, folder)
        columns = parse_columns(policy, tau, trained, named_taus)
        if named_taus:
            log.info("named taus are those by the costs of %s", named_taus.costs_of)
        kept = about_names(policy, tau, trained, taus_here, named_taus)
        for note in (*folder.notes, *kept, *warnings_about(sources, named, whose if uses_head else None, threads=threads)):
            display.note(note)
        found = fetch(sources, display, offline=offline)
        each = sequences((column.policy for column in columns), reward)
        at_once = choose_concurrency(
            concurrency,
            lambda: memory_needed(found, load, each),
            most=len(items) if concurrency == AUTO else MOST,
            earlier=concurrency_of(folder),
        )
        for note in about_concurrency([column.policy for column in columns], at_once):
            display.note(note)
        setup = Setup(
            command=["arbitrage", *(context.obj or ())],
            dataset=problems,
            ids=[item.problem.id for item in items],
            columns=columns,
            samples=samples,
            sources=sources,
            found=found,
            load=load,
            threads=place(found, load).threads,
            sampler=Sampler(temperature, top_p, seed),
            limits=Limits(max_steps, max_tokens, max_step_tokens),
            system=instructions(system, named),
            head=trained if uses_head else None,
            stops_early=kept_early_stop(
                stops_early(early_stop, (column.policy for column in columns), trained, whose, placement.costs),
                early_stop,
                folder,
            ),
            reward=reward_needed((column.policy for column in columns), reward),
            prm_style=style_of_prm(prm_style, models["prm"], named),
            grader=grader_version(),
            named_taus=named_taus,
            concurrency=at_once,
        )
        run = run_facts(setup, display.loading)
        if folder.rows and folder.run:
            run = go_on(folder.run, run, path)
        attempts = plan(items, columns, samples, at_once)
        work = Work(setup, attempts, left(attempts, folder.rows, retry_errors=retry_errors), folder, display)
        with telling_how_to_go_on(display, lambda: work.how_to_go_on):
            if work.left:
                measure(work, run, timeout)
            rows = latest(folder.rows)
            display.close()
            show_figures(folder.run or {}, folder.rows, cost_ratio=cost_ratio, as_json=json_line)
    asked = {attempt.key for attempt in attempts}
    if any(row["status"] == "error" and key_of(row) in asked for row in rows):
        raise typer.Exit(shared.SOME_FAILED)
