"""`arbitrage collect`: states to train a head on, from a data set and a pair of models."""

import contextlib
import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arbitrage_cli.cli import options as shared
from arbitrage_cli.cli.output import choose_display, log_to, telling_how_to_go_on
from arbitrage_cli.cli.sources import (
    head_named,
    instructions,
    name_models,
    needed_models,
    pair_named,
    reward_needed,
    style_of_prm,
    template_variables,
    warnings_about,
)
from arbitrage_cli.errors import UsageError
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.types import Limits

if TYPE_CHECKING:
    from arbitrage_cli.routing.head import Head
    from arbitrage_cli.training.collect import Keep

_COLLECT = "Collect"


class RollIn(StrEnum):
    """Whose step a solution goes on with."""

    better = "better"
    draft = "draft"
    head = "head"


def collect(
    context: typer.Context,
    dataset: shared.DatasetName,
    mapping: shared.Mapped = None,
    limit: shared.Limited = None,
    ids: shared.Ids = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="The run's folder. Default: one below runs/.", rich_help_panel=_COLLECT
        ),
    ] = None,
    reward: Annotated[
        shared.RewardSource | None,
        typer.Option(
            help="How good a step is: what the process reward model says, or whether the target gets the answer right from "
            "there. Default: the process reward model, where the pair has one.",
            rich_help_panel=_COLLECT,
        ),
    ] = None,
    roll_in: Annotated[
        RollIn,
        typer.Option(
            help="Whose step the solution goes on with: the better one, the draft's, or what --head would keep.",
            rich_help_panel=_COLLECT,
        ),
    ] = RollIn.better,
    target_samples: Annotated[
        int,
        typer.Option(
            min=1,
            max=16,
            help="Steps that the target writes from each state; the advantage is over the mean of their rewards. More than one "
            "needs a --temperature.",
            rich_help_panel=_COLLECT,
        ),
    ] = 1,
    rollouts: Annotated[
        int,
        typer.Option(
            min=1,
            max=16,
            help="Continuations of each step for --reward rollout: one is greedy, more are sampled.",
            rich_help_panel=_COLLECT,
        ),
    ] = 1,
    rollout_temperature: Annotated[
        float, typer.Option(min=0.01, max=10.0, help="Of more than one rollout.", rich_help_panel=_COLLECT)
    ] = 0.7,
    concurrency: shared.Concurrency = "8",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew; what is in the folder is set aside.", rich_help_panel=_COLLECT)
    ] = False,
    draft: shared.Draft = None,
    target: shared.Target = None,
    pair: shared.PairName = None,
    prm: shared.RewardModel = None,
    prm_style: shared.PrmStyle = None,
    head: shared.HeadFile = None,
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
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
    debug: shared.Debug = False,
) -> None:
    """Collect states to train a head on: both models write every step, and rewards say how much better the target's is.

    Every solved problem is safe as soon as it is there, and the same command goes on with a run that was broken off. Train
    on the folder with arbitrage train: the states of problems that were not solved to their end count too.
    """
    # Not at the top: NumPy and the engines take longer to import than --help may take.
    from arbitrage_cli.cli.asked import choose_items, folder_name
    from arbitrage_cli.cli.gathering import Gathering, gather
    from arbitrage_cli.cli.routing import find_head, sequences
    from arbitrage_cli.cli.run_facts import Setup, go_on, run_facts, told_features
    from arbitrage_cli.cli.session import fetch
    from arbitrage_cli.data.datasets import load_dataset
    from arbitrage_cli.data.rows import parse_mapping
    from arbitrage_cli.evaluation.benchmark import PolicyAtTau
    from arbitrage_cli.grading.grader import grader_version
    from arbitrage_cli.inference.sampling import Sampler
    from arbitrage_cli.routing.features import FEATURES
    from arbitrage_cli.runs.folder import COLLECT, RunFolder, latest
    from arbitrage_cli.tuning.memory import choose_concurrency, memory_needed
    from arbitrage_cli.tuning.placement import load_options, place

    if target_samples > 1 and temperature == 0:
        raise UsageError(
            "a greedy target writes the same step each time", "give a --temperature, or one of --target-samples"
        )
    named = pair_named(context, pair, draft=draft, target=target)
    models = name_models(context, draft=draft, target=target, prm=prm, pair=named)
    whose = head_named(head, named, models) if roll_in is RollIn.head else None
    trained = find_head(whose)
    keep = _keep(roll_in, trained)
    column = PolicyAtTau(POLICIES["oracle"], 0.0)
    sources = needed_models([column.policy], models, reward)
    variables = template_variables(chat_template_kwargs, named)
    load = load_options(named, ctx, threads, gpu_layers, flash_attention, kv_type.value, variables)
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(contextlib.closing(choose_display(quiet=quiet)))
        stack.enter_context(log_to(display, verbose=verbose, debug=debug))
        for warning in warnings_about(sources, named, whose, threads=threads):
            display.note(warning)
        problems = load_dataset(dataset, offline=offline, mapping=parse_mapping(mapping) if mapping else {})
        items = choose_items(problems.items, ids, limit)
        path = output or Path("runs") / f"collect-{folder_name(problems.name, models, named)}"
        folder = stack.enter_context(RunFolder(path, kind=COLLECT, fresh=fresh))
        for note in folder.notes:
            display.note(note)
        setup = Setup(
            command=["arbitrage", *(context.obj or ())],
            dataset=problems,
            ids=[item.problem.id for item in items],
            columns=[column],
            samples=1,
            sources=sources,
            found=fetch(sources, display, offline=offline),
            load=load,
            threads=place(models, load).threads,
            sampler=Sampler(temperature, top_p, seed),
            limits=Limits(max_steps, max_tokens, max_step_tokens),
            system=instructions(system, named),
            grader=grader_version(),
            head=trained,
            reward=reward_needed([column.policy], reward),
            prm_style=style_of_prm(prm_style, models["prm"], named),
        )
        sampled = {"rollouts": rollouts, "temperature": rollout_temperature if rollouts > 1 else 0.0}
        samplers = [Sampler(sampled["temperature"], 1.0, seed + number) for number in range(rollouts)]
        plain = run_facts(setup, display.loading)
        how = {
            "reward": {"kind": setup.reward, **(sampled if setup.reward == "rollout" else {})},
            "roll_in": roll_in.value,
            "target_samples": target_samples,
        }
        told = {name: value if isinstance(value, str) else json.dumps(value) for name, value in how.items()}
        facts: dict[str, Any] = {
            **plain,
            "kind": COLLECT,
            "features": list(FEATURES),
            **how,
            "fingerprint": {**plain["fingerprint"], **told, **told_features(FEATURES)},
        }
        run = go_on(folder.run, facts, path) if folder.rows and folder.run else facts
        done = {row["id"] for row in latest(folder.rows) if row["status"] == "done"}
        left = [item for item in items if item.problem.id not in done]
        if left:
            each = sequences([column.policy], setup.reward, rollouts)
            at_once = choose_concurrency(concurrency, lambda: memory_needed(setup.found, setup.load, each), most=len(left))
            work = Gathering(setup, items, left, folder, display, keep, at_once, target_samples, samplers)
            with telling_how_to_go_on(display, lambda: work.how_to_go_on):
                gather(work, run)
        rows = latest(folder.rows)
        display.close()
        num_states = sum(len(row["states"]) for row in rows)
        typer.echo(f"{path}: {num_states} states of {len(rows)} problems", err=True)
    asked = {item.problem.id for item in items}
    if any(row["status"] == "error" and row["id"] in asked for row in rows):
        raise typer.Exit(shared.SOME_FAILED)


def _keep(roll_in: RollIn, head: "Head | None") -> "Keep":
    from arbitrage_cli.cli.routing import DEFAULT_TAU, needed
    from arbitrage_cli.routing.thresholds import TauTable
    from arbitrage_cli.training.collect import as_routed, better, drafted

    if roll_in is not RollIn.head:
        return better if roll_in is RollIn.better else drafted
    known = needed(head)
    return as_routed(known.probability, TauTable.from_json(known.card.taus).resolve(DEFAULT_TAU))
