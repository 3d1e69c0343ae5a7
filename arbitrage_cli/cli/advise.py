"""`arbitrage advise`: whether a pair pays on this machine, and how to use it, in one sentence and one command line."""

import shlex
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from arbitrage_cli.app.completion import data_sets
from arbitrage_cli.app.options import (
    BenchRoutingOptions,
    FolderOptions,
    GenerationOptions,
    HeadOptions,
    Invocation,
    JsonFigures,
    MachineOptions,
    Option,
    OutputOptions,
    ProblemOptions,
    RoutingOptions,
    RunCode,
)
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.output import command_display, offering_to_resume, only_figures_on_stdout, permitted, say, write_json
from arbitrage_cli.display.text import is_drawable, one_line, write
from arbitrage_cli.errors import UsageError

if TYPE_CHECKING:
    from arbitrage_cli.app.model_choice import ModelChoice
    from arbitrage_cli.app.selection import Selection
    from arbitrage_cli.app.setup import RunOptions
    from arbitrage_cli.runs.folder import Row
    from arbitrage_cli.types import ModelRole

BUILT_IN_PROBLEMS = "builtin"
_PANEL = "Advice"


@dataclass(frozen=True, slots=True)
class AdviceOptions(FolderOptions):
    """On which problems, for how long, and where the result goes."""

    dataset: Annotated[
        str | None,
        Option(
            _PANEL,
            "Problems like yours: a data set, or a file of questions. Default: some built-in problems.",
            "NAME|FILE",
            complete=data_sets,
        ),
    ] = None
    mapping: Annotated[
        str | None,
        Option(_PANEL, "Names of a file's fields: question=prompt,answer=gold.", "FIELD=NAME,...", names=("--map",)),
    ] = None
    minutes: Annotated[float, Option(_PANEL, "Time after which no further problem is begun.", min=0.01, max=10_000)] = 10.0
    save: Annotated[
        bool, Option(_PANEL, "Write the advice to the pair's entry in pairs.toml: the other commands follow it.")
    ] = False
    run_code: RunCode = None


@command
def advise(
    invocation: Invocation,
    *,
    advice: AdviceOptions,
    models: HeadOptions,
    generation: GenerationOptions,
    machine: MachineOptions,
    json_line: JsonFigures = False,
    output: OutputOptions,
) -> None:
    """Find out whether a pair pays on this machine, and how to use it: one sentence and one command line.

    It measures what tokens cost here, as arbitrage tune does. Then it solves 5 to 40 problems in each way, in turns: the target
    alone, speculation, routing, the draft alone. It stops as soon as they decide it. The same command resumes a run.

    \b
    Examples:
      arbitrage advise
      arbitrage advise --pair mine --dataset questions.jsonl --save
      arbitrage advise --draft small.gguf --target large.gguf --minutes 30
    """
    from arbitrage_cli.app.advice import MOST_PROBLEMS, findings, shuffled
    from arbitrage_cli.app.model_choice import choose_models
    from arbitrage_cli.app.selection import read_problems
    from arbitrage_cli.app.setup import RunOptions
    from arbitrage_cli.evaluation.metrics import figures
    from arbitrage_cli.tasks.registry import find_task

    dataset = advice.dataset or BUILT_IN_PROBLEMS
    problems = ProblemOptions(dataset=dataset, mapping=advice.mapping, limit=str(MOST_PROBLEMS))
    with command_display(output) as display:
        selected = shuffled(read_problems(problems, seed=generation.seed, offline=models.offline, needs_answers=False))
        if not advice.dataset:
            display.note("these are built-in problems; your own tell more: --dataset FILE, one question a line")
        task = find_task(generation.task or selected.dataset.task)
        choice = choose_models(invocation, models, task.name)
        if advice.save and not choice.is_pairs_own:
            raise UsageError(
                "--save needs a pair", "name these two models in pairs.toml, and give --pair NAME", option="save"
            )
        _measure_costs(choice, models, machine, display)
        options = RunOptions(invocation, models, generation, machine, selected.dataset.task)
        run, rows, out_of_time = _run(options, advice, selected, display)
    made = figures(run, rows, out_of_time=out_of_time)
    if json_line:
        write_json(made)
    else:
        following = _next(made["verdict"], choice, invocation, advice, out_of_time=out_of_time)
        _show(made, findings(made, rows, of_code=task.name == "code"), following)
    if advice.save:
        _save(made["verdict"], choice, output)


def _run(
    options: "RunOptions", advice: AdviceOptions, selected: "Selection", display: Display
) -> tuple[dict[str, Any], list["Row"], bool]:
    """Solve problems in all ways until they decide, or the time is up: the run, its rows, and whether it was."""
    from arbitrage_cli.app.advice import Enough, finished, ways
    from arbitrage_cli.app.bench_run import measure, plan_run
    from arbitrage_cli.app.selection import default_folder
    from arbitrage_cli.app.session import Session
    from arbitrage_cli.app.setup import bench_setup, resumed_setup, solve_setup
    from arbitrage_cli.runs.folder import RunFolder

    base = solve_setup(options, RoutingOptions(policy="target"))
    setup = bench_setup(options, BenchRoutingOptions(policy=ways(base)))
    setup = replace(setup, task=permitted(setup.task, advice.run_code))
    path = advice.output_folder or default_folder(selected.dataset.name, setup.choice, prefix="advise--")
    with RunFolder(path, fresh=advice.fresh) as folder:
        setup = resumed_setup(setup, folder.run if folder.rows else None, early_stop=None)
        enough = Enough(folder, len(setup.routes), advice.minutes)
        with Session(setup, display) as session:
            run = plan_run(session, selected, folder)
            with offering_to_resume(display, lambda error: run.how_to_resume):
                if run.left.all and not (folder.rows and enough.is_decided()):
                    with only_figures_on_stdout():
                        measure(run, display, None, enough)
        return *finished(folder, len(setup.routes)), enough.out_of_time


def _measure_costs(choice: "ModelChoice", models: HeadOptions, machine: MachineOptions, display: Display) -> None:
    """Measure the models that were not, as `arbitrage tune` does; with --threads, the run alone tells what tokens cost."""
    from arbitrage_cli.app.model_choice import load_options
    from arbitrage_cli.app.session import fetch
    from arbitrage_cli.cli.tune import measure_and_keep
    from arbitrage_cli.model_files.pairs import is_file
    from arbitrage_cli.tuning.placement import place

    both: dict[ModelRole, str] = {role: source for role, source in choice.models.items() if source and role != "prm"}
    load = load_options(choice.pair, machine)
    if machine.threads or not all(map(is_file, both.values())):
        return
    paths = fetch(both, display, offline=models.offline)
    if place(paths, load).costs is None:
        with only_figures_on_stdout():
            _, errors = measure_and_keep(paths, load, display)
        if errors:
            raise errors[0]


def _show(made: dict[str, Any], facts: list[tuple[str, str]], following: str) -> None:
    """The table without its verdict, which comes last, with the command line."""
    from arbitrage_cli.display import table

    table.write_table(made | {"verdict": None}, facts, sys.stdout, styled=is_drawable(sys.stdout))
    text = made["verdict"]["text"] if made["verdict"] else "Only the target alone was tried."
    write(sys.stdout, f"\n{one_line(text)}\n  {following}\n")


def _next(
    verdict: dict[str, Any] | None,
    choice: "ModelChoice",
    invocation: Invocation,
    advice: AdviceOptions,
    *,
    out_of_time: bool,
) -> str:
    """The command line that follows from a verdict: how to solve, or how to go on."""
    if verdict is None or verdict["decision"] == "not decided":
        if not out_of_time:
            return "give --dataset a file with more questions"
        more = [] if invocation.count("--minutes") else ["--minutes", f"{3 * advice.minutes:g}"]
        return shlex.join([*invocation.command, *more])
    policy, _, tau = (verdict["route"] or "target").partition("@")
    return shlex.join(
        ["arbitrage", "solve", *choice.arguments, "--policy", policy, *(["--tau", tau] if tau else []), "PROBLEM"]
    )


def _save(verdict: dict[str, Any] | None, choice: "ModelChoice", output: OutputOptions) -> None:
    """Keep the advice with the pair, if there is any. OutputError."""
    from arbitrage_cli.model_files.pairs import save_pair
    from arbitrage_cli.system.files import user_folder

    if verdict is None or verdict["decision"] == "not decided" or choice.pair is None:
        say("not saved: there is no verdict yet", output)
        return
    policy, _, tau = (verdict["route"] or "target").partition("@")
    path = user_folder() / "pairs.toml"
    save_pair(path, replace(choice.pair, policy=policy, tau=tau or None))
    say(f"saved in {path}: pair {choice.pair.name} uses policy {policy}" + f" at {tau}" * bool(tau), output)
