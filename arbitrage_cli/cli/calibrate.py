"""`arbitrage calibrate`: what a head's taus do on another data set and on this machine, and which of them have names."""

import contextlib
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arbitrage_cli.cli import options as shared
from arbitrage_cli.cli.collect import RollIn, collect
from arbitrage_cli.cli.output import choose_display, only_figures_on_stdout
from arbitrage_cli.cli.sources import (
    head_named,
    models_of_states,
    name_models,
    pair_named,
)
from arbitrage_cli.cli.train import HeadName, check_place, name_of_head
from arbitrage_cli.cli.tune import measure_model, note_if_busy
from arbitrage_cli.display.text import one_line, write
from arbitrage_cli.errors import UsageError
from arbitrage_cli.model_files.pairs import local_files
from arbitrage_cli.types import ModelRole

if TYPE_CHECKING:
    from arbitrage_cli.inference.backend import Options
    from arbitrage_cli.routing.head import Head
    from arbitrage_cli.routing.thresholds import Costs
    from arbitrage_cli.training.examples import Collected
    from arbitrage_cli.tuning.store import Tuned

_COLLECT = "Collect"
ROLES: tuple[ModelRole, ...] = ("draft", "target")


def calibrate(
    context: typer.Context,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where the head is written: FILE.safetensors.")
    ],
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN...", help="Run folders, as arbitrage collect makes them.")
    ] = None,
    name: HeadName = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            metavar="NAME|FILE",
            help="Instead of runs: collect on these problems first, going on with the steps that the head would keep.",
            rich_help_panel=_COLLECT,
        ),
    ] = None,
    mapping: shared.Mapped = None,
    limit: shared.Limited = None,
    ids: shared.Ids = None,
    collected: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where they are collected. Default: a folder below runs/.", rich_help_panel=_COLLECT
        ),
    ] = None,
    reward: Annotated[
        shared.RewardSource | None, typer.Option(help="As for arbitrage collect.", rich_help_panel=_COLLECT)
    ] = None,
    rollouts: Annotated[int, typer.Option(min=1, max=16, help="As for arbitrage collect.", rich_help_panel=_COLLECT)] = 1,
    concurrency: shared.Concurrency = "8",
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
    json_line: Annotated[
        bool, typer.Option("--json", envvar="ARBITRAGE_JSON", help="The card as one line of JSON.")
    ] = False,
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
    debug: shared.Debug = False,
) -> None:
    """Make a head's table of taus anew on collected runs, or on a data set, at the costs of this machine.

    The head decides as before; what exact, balanced, fast and a budget mean changes. Costs are those that arbitrage tune
    measured. Models of runs that are here and were not measured are measured now, as arbitrage tune does. The names are
    chosen and shown on the same states.
    """
    given = locals()  # the options as they came: those that arbitrage collect has too mean the same to it
    # Not at the top: NumPy and the engines take longer to import than --help may take.
    from arbitrage_cli.cli.asked import folder_name
    from arbitrage_cli.cli.routing import find_head, needed
    from arbitrage_cli.display.card import write_taus
    from arbitrage_cli.routing.head import save
    from arbitrage_cli.routing.thresholds import TauTable
    from arbitrage_cli.training.examples import read_states
    from arbitrage_cli.training.train import with_taus
    from arbitrage_cli.tuning.placement import load_options

    check_place(output)
    _check_source(context, runs, dataset)
    named = pair_named(context, pair, draft=draft, target=target)
    models = name_models(context, draft=draft, target=target, prm=prm, pair=named)
    if runs and not (pair or draft or target):
        named, models = models_of_states(runs[0])
    known = needed(find_head(head_named(head, named, models)))
    folders, some_failed, is_from_here = runs or [], False, not runs
    if is_from_here:
        folders = [collected or Path("runs") / f"calibrate-{folder_name(str(dataset), models, named)}"]
        some_failed = _collect(given, folders[0])
    states = read_states(folders)
    if len(states.pairs) > 1:
        raise UsageError("these runs are of different pairs", "taus hold for one pair: calibrate on the runs of one")
    load = load_options(named, ctx, threads, gpu_layers, flash_attention, kv_type.value)
    costs = _costs_here(folders[0], load, measure=not is_from_here, quiet=quiet)
    made = with_taus(known, states, costs, name=name or name_of_head(output, folders))
    save(made, output)
    table = TauTable.from_json(made.card.taus)
    times = {row.tau: table.time(row) for row in table.rows}
    whose = "this machine" if costs or is_from_here else "the machine that collected"
    if json_line:
        write(sys.stdout, json.dumps(made.card.to_json(), ensure_ascii=True, allow_nan=False) + "\n")
    else:
        write_taus(made.card.taus, times, sys.stdout, on=", ".join(folder.name for folder in folders), costs_of=whose)
    if not quiet:
        for data in _learned_from(known, states):
            typer.echo(
                f"the head learned from {one_line(data)} too: on problems that it knows its taus look better than they are",
                err=True,
            )
        names = f"head {one_line(made.card.name)}, made from {one_line(known.card.name)}"
        typer.echo(f"wrote {output}: {names}, with the costs of {whose}", err=True)
    if some_failed:
        raise typer.Exit(shared.SOME_FAILED)


def _check_source(context: typer.Context, runs: Sequence[Path] | None, dataset: str | None) -> None:
    """Runs or a data set; one that a settings file names for all commands is no second wish. UsageError."""
    source = context.get_parameter_source("dataset")
    if runs and source is not None and source.name == "COMMANDLINE":
        raise UsageError("both runs and a data set are given", "give one of them")
    if not runs and dataset is None:
        raise UsageError("there is nothing to calibrate on", "give runs of arbitrage collect, or --dataset NAME")


def _learned_from(head: "Head", states: "Collected") -> list[str]:
    """The data sets of these states that the head was trained on."""
    learned = {run["dataset_sha256"] for run in head.card.data.get("runs", ()) if not run["is_test"]} - {None}
    return sorted({str(run["dataset"]) for run in states.runs if run["dataset_sha256"] in learned})


def _collect(given: Mapping[str, Any], folder: Path) -> bool:
    """Collect with these options, rolled in by the head; whether some problems failed."""
    shared_options = {name: value for name, value in given.items() if name in inspect.signature(collect).parameters}
    try:
        collect(**{**shared_options, "output": folder, "roll_in": RollIn.head})
    except typer.Exit:
        return True
    return False


def _costs_here(folder: Path, load: "Options", *, measure: bool, quiet: bool) -> "Costs | None":
    """What tokens of the run's models cost here: as they were measured, or are now; None if they are not here.

    Nor is it known for a number of threads that was asked for. What was collected here has costs of its own, and is not to
    be measured now: with other threads than it was begun with, it could not go on.
    """
    from arbitrage_cli.runs.folder import COLLECT, read_run_folder
    from arbitrage_cli.tuning.placement import costs_of, kept_here, tuned_file
    from arbitrage_cli.tuning.store import check_place as check_tuned
    from arbitrage_cli.tuning.store import keep_tuned

    if load.threads is not None:
        return None
    models = (read_run_folder(folder, COLLECT).run or {})["models"]
    tuned: dict[ModelRole, Tuned] = {}
    num_measured = 0
    with contextlib.closing(choose_display(quiet=quiet)) as display, only_figures_on_stdout():
        for role in ROLES:
            known = kept_here(models[role].get("sha256"), load)
            path = models[role].get("file")
            if known is None and measure and _is_here(path, models[role].get("sha256")):
                check_tuned(tuned_file())
                if not quiet and not num_measured:
                    note_if_busy(display)
                num_measured += 1
                known = measure_model(role, path, load, display).tuned
                keep_tuned(tuned_file(), [known])
            if known is None:
                return None
            tuned[role] = known
    return costs_of(tuned)


def _is_here(path: str | None, sha256: str | None) -> bool:
    """Whether a model's files are where the run found them, and still the same. A demo model has none."""
    from arbitrage_cli.system.files import sha256_of

    files = local_files(path) if path else ()
    return bool(files) and sha256_of(files) == sha256
