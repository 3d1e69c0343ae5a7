"""`arbitrage calibrate`: what a head's taus do on other problems and on this machine, and which of them have names."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arbitrage_cli.app.options import (
    SOME_FAILED,
    GenerationOptions,
    Invocation,
    JsonFigures,
    MachineOptions,
    ModelOptions,
    OptionalProblemOptions,
    OutputOptions,
    ProblemOptions,
    option,
)
from arbitrage_cli.cli.collect import CollectOptions, RewardOptions, RollIn
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.output import command_display, only_figures_on_stdout
from arbitrage_cli.cli.train import Force, HeadName, check_destination, name_of_head
from arbitrage_cli.display import rounding
from arbitrage_cli.display.text import one_line, write
from arbitrage_cli.errors import UsageError
from arbitrage_cli.types import ModelRole

if TYPE_CHECKING:
    from arbitrage_cli.app.setup import RunOptions
    from arbitrage_cli.inference.backend import Options
    from arbitrage_cli.routing.head import Head
    from arbitrage_cli.routing.pair_costs import Costs
    from arbitrage_cli.training.examples import Collected

ROLES: tuple[ModelRole, ...] = ("draft", "target")


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateOptions(RewardOptions):
    """How problems of --dataset are collected, and where the head goes."""

    output_file: Annotated[Path, option("Output", "--output", "-o", metavar="FILE", help="The new head: FILE.safetensors.")]
    name: HeadName = None
    force: Force = False
    collected: Annotated[
        Path | None,
        option("Collect", "--collected", metavar="FOLDER", help="Folder of the collected states. Default: one below runs/."),
    ] = None


@command
def calibrate(
    invocation: Invocation,
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN...", help="Run folders of arbitrage collect, instead of --dataset.")
    ] = None,
    *,
    calibrate: CalibrateOptions,
    problems: OptionalProblemOptions,
    models: ModelOptions,
    generation: GenerationOptions,
    machine: MachineOptions,
    output: OutputOptions,
    json_line: JsonFigures = False,
) -> int:
    """Make a head's table of taus again, on collected runs or on a data set, at the costs of this machine.

    The head decides as before; what exact, balanced, fast and a budget mean changes. Costs are those that arbitrage tune
    measured; models of runs that were not measured are measured now.

    \b
    Examples:
      arbitrage calibrate runs/states --head head.safetensors -o mine.safetensors
      arbitrage calibrate --pair mine --dataset others.jsonl --reward rollout --head head.safetensors -o mine.safetensors
    """
    from arbitrage_cli.app.model_choice import choice_of_states, choose_models, load_options
    from arbitrage_cli.app.setup import RunOptions
    from arbitrage_cli.routing.choice import load_head, need_head
    from arbitrage_cli.routing.head_file import save
    from arbitrage_cli.training.examples import read_states
    from arbitrage_cli.training.train import with_taus

    check_destination(calibrate.output_file, force=calibrate.force)
    runs = runs or []
    _check_source(invocation, runs, problems.dataset)
    names_models = models.pair or models.draft or models.target
    choice = (
        choice_of_states(runs[0], models.head)
        if runs and not names_models
        else choose_models(invocation, models, generation.task)
    )
    head = need_head(load_head(choice.head_source))
    some_failed = False
    if not runs:
        folder, some_failed = _collect(RunOptions(invocation, models, generation, machine), calibrate, problems, output)
    folders = runs or [folder]
    states = read_states(folders)
    if len(states.pairs) > 1:
        raise UsageError("these runs are of different pairs", "taus hold for one pair: calibrate on the runs of one")
    load = load_options(choice.pair, machine, threads=machine.threads)
    costs = _costs_here(folders[0], load, output, may_measure=bool(runs))
    made = with_taus(head, states, costs, name=calibrate.name or name_of_head(calibrate.output_file, folders))
    save(made, calibrate.output_file)
    whose = "this machine" if costs or not runs else "the machine that collected"
    _show(made, folders, whose, as_json=json_line)
    if not output.quiet:
        _report_head(made, head, states, f"wrote {calibrate.output_file}", whose)
    return SOME_FAILED if some_failed else 0


def _check_source(invocation: Invocation, runs: Sequence[Path], dataset: str | None) -> None:
    """Runs or a data set; a data set that is a setting for all commands does not contradict runs. UsageError."""
    if runs and "dataset" in invocation.flags:
        raise UsageError("both runs and a data set are given", "give one of them")
    if not runs and dataset is None:
        raise UsageError("there is nothing to calibrate on", "give runs of arbitrage collect, or --dataset NAME")


def _collect(
    run: "RunOptions", options: CalibrateOptions, problems: OptionalProblemOptions, output: OutputOptions
) -> tuple[Path, bool]:
    """Collect states with the head deciding. Returns their folder, and whether some problems failed."""
    from arbitrage_cli.app.selection import default_folder, read_problems
    from arbitrage_cli.app.setup import collect_setup
    from arbitrage_cli.cli.collect_run import CollectPlan, run_collection
    from arbitrage_cli.cli.running_code import refuse_running_code

    selected = ProblemOptions(problems.mapping, problems.limit, problems.ids, dataset=str(problems.dataset))
    how = CollectOptions(options.reward, options.rollouts, options.rollout_temperature, RollIn.head)
    with command_display(output) as display:
        chosen = read_problems(selected, seed=run.generation.seed, offline=run.models.offline, needs_answers=False)
        setup = collect_setup(replace(run, task=chosen.dataset.task), options.reward)
        refuse_running_code(setup.task, is_allowed=problems.run_code)
        path = options.collected or default_folder(chosen.dataset.name, setup.choice, prefix="calibrate-")
        return path, run_collection(setup, CollectPlan(chosen, path, how), display).has_errors


def _show(head: "Head", folders: Sequence[Path], whose: str, *, as_json: bool) -> None:
    from arbitrage_cli.display.card import write_taus
    from arbitrage_cli.routing.thresholds import usual_rows

    if as_json:
        write(sys.stdout, json.dumps(head.card.to_json(), ensure_ascii=True, allow_nan=False) + "\n")
        return
    rows = usual_rows(head.card.taus)
    write_taus(head.card.taus, rows, sys.stdout, on=", ".join(folder.name for folder in folders), costs_of=whose)


def _report_head(made: "Head", head: "Head", states: "Collected", wrote: str, whose: str) -> None:
    if known := head.card.count_known(states.questions):
        which = f"{known} of these {rounding.count(len(states.questions), 'problem')}"
        typer.echo(f"the head was trained on {which}: on them its taus look better than they are", err=True)
    names = f"head {one_line(made.card.name)}, made from {one_line(head.card.name)}"
    typer.echo(f"{wrote}: {names}, with the costs of {whose}", err=True)


def _costs_here(folder: Path, load: "Options", output: OutputOptions, *, may_measure: bool) -> "Costs | None":
    """What tokens of the run's models cost here, as measured before or now; None if the models are not here.

    Nor are costs known for a number of threads that was asked for. What was collected here just now has costs of its own, and is
    not measured: with other threads than it began with it could not be resumed.
    """
    from arbitrage_cli.runs.folder import COLLECT, read_run_folder
    from arbitrage_cli.tuning.placement import costs_of, find_measurement

    if load.threads is not None:
        return None
    models = (read_run_folder(folder, COLLECT).run or {})["models"]
    tuned: dict[ModelRole, Any] = {}
    with command_display(output) as display, only_figures_on_stdout():
        for role in ROLES:
            known = find_measurement(models[role].get("sha256"), load)
            if known is None and may_measure:
                known = _measure_now(role, models[role], load, display)
            if known is None:
                return None
            tuned[role] = known
    return costs_of(tuned)


def _measure_now(role: ModelRole, recorded: Any, load: "Options", display: Any) -> Any:
    """The measurement of a model that is where the run found it, and still the same; else None. A scripted model has no file."""
    from arbitrage_cli.cli.tune import measure_and_keep
    from arbitrage_cli.model_files.pairs import local_files
    from arbitrage_cli.system.files import sha256_of

    path = recorded.get("file")
    files = local_files(path) if path else ()
    if not files or sha256_of(files) != recorded.get("sha256"):
        return None
    return measure_and_keep(role, path, load, display).tuned
