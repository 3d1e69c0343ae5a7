"""`arbitrage bench`: measures policies on a data set."""

import shlex
import sys
from typing import TYPE_CHECKING

import typer

from arbitrage_cli.app.options import SOME_FAILED, BenchOptions, Options, ProblemOptions
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.options import Option
from arbitrage_cli.cli.output import FigureOptions, OutputOptions, command_display, say, show_figures
from arbitrage_cli.cli.streams import ClosedOutput, only_figures_on_stdout
from arbitrage_cli.display.text import one_line
from arbitrage_cli.errors import UsageError
from arbitrage_cli.numbers import formatting

if TYPE_CHECKING:
    from arbitrage_cli.app.commands.bench import BenchRun
    from arbitrage_cli.app.entries.ask_run import AskedRun


@command(
    without=["tau"],
    policy=Option(
        "Policies to compare, each with an optional tau, such as target,arbitrage@fast,entropy@0.5. Default: target, "
        "draft, speculative (only for local models and one problem at a time) and arbitrage (for code: only with a router).",
        "NAME[@TAU],...",
    ),
    reward=Option(
        "Reward for policy oracle: prm (a process reward model) or rollout (whether the target reaches the known answer if it "
        "continues from the step)."
    ),
    dry_run=Option(
        "Show the run's settings, the remaining attempts and their expected time, without running them or downloading models.",
        is_setting=False,
    ),
    samples=Option("Attempts per problem; sample k uses seed + k.", "N"),
    timeout=Option("Time limit per attempt, in seconds. Default: none.", "SECONDS"),
)
def bench(
    *,
    problems: ProblemOptions,
    run: BenchOptions,
    json_line: bool = False,
    options: Options,
    output: OutputOptions,
) -> int:
    """Measure the accuracy and time of policies on a data set.

    Each result is saved immediately. To resume an interrupted run with its original settings, repeat the command. You can
    add problems, samples, policies and taus to a run. With --concurrency, several problems are solved at once, and the run
    gets its own folder. Texts can change only where two tokens are almost equally likely.

    \b
    Examples:
      arbitrage bench --dataset builtin --policy target,arbitrage,arbitrage@fast
      arbitrage bench --dataset math500 --pair llama3 --limit 100
      arbitrage bench --dataset problems.jsonl --map question=prompt,answer=gold --pair mine
    """
    from arbitrage_cli.app.asking.request import ask_to_compare
    from arbitrage_cli.app.commands.bench import run_bench
    from arbitrage_cli.app.entries.ask_run import ask_for_run
    from arbitrage_cli.app.entries.start import session_of
    from arbitrage_cli.runs.records import BENCH

    if run.dry_run and "json_line" in options.explicit:
        raise UsageError("cannot be used with --dry-run", "omit this option", option="json_line")
    with command_display(output) as display:
        asked = ask_for_run(ask_to_compare, options, problems, run, BENCH, display, is_preview=run.dry_run)
        if run.dry_run:
            _show_preview(asked)
            return 0
        with only_figures_on_stdout():
            done = run_bench(session_of(asked.request), asked.selected, asked.path, run, asked.samples, display)
        display.close()
        if not isinstance(sys.stdout, ClosedOutput):
            show_figures(done.run, done.results, FigureOptions(json_line=json_line))
        say(_conclusion(done), output)
    return SOME_FAILED if done.num_errors else 0


def _show_preview(asked: "AskedRun") -> None:
    from arbitrage_cli.app.commands.preview import preview
    from arbitrage_cli.app.deciding.plan import plan_without_models
    from arbitrage_cli.display.run_facts import plan_facts

    planned = preview(plan_without_models(asked.request), asked.selected, asked.path, asked.samples)
    for name, value in plan_facts(planned, asked.selected.title, asked.path):
        typer.echo(f"{name:<10}{one_line(value)}")


def _conclusion(run: "BenchRun") -> str:
    folder = shlex.quote(str(run.folder.path))
    status = "" if run.todo else "nothing to do: "
    errors = f"; {formatting.count(run.num_errors, 'error')} (the same command retries)" if run.num_errors else ""
    attempts = formatting.count(len(run.results), "attempt")
    return f"{status}{folder} has {attempts}{errors}; to see every trace: arbitrage report {folder} -o report.html"
