"""`arbitrage bench`: measures policies on a data set."""

import shlex
import sys
from typing import TYPE_CHECKING

import typer

from arbitrage_cli.app.options import SOME_FAILED, BenchOptions, Options, ProblemOptions, RewardSource
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.options import Option
from arbitrage_cli.cli.output import (
    ClosedOutput,
    FigureOptions,
    OutputOptions,
    command_display,
    only_figures_on_stdout,
    permitted,
    say,
    show_figures,
)
from arbitrage_cli.display.text import one_line
from arbitrage_cli.errors import UsageError
from arbitrage_cli.numbers import formatting

if TYPE_CHECKING:
    from arbitrage_cli.app.bench import BenchRun


@command(
    without=["tau"],
    policy=Option(
        "Policies to compare, each with an optional tau, such as target,arbitrage@fast,entropy@0.5. Default: target, "
        "draft, speculative (only for local models), arbitrage and logprob.",
        "NAME[@TAU],...",
    ),
    reward=Option(
        "Reward for policy oracle: prm (a process reward model) or rollout (whether the target reaches the known answer)."
    ),
    dry_run=Option("Show what would be decided and how many attempts are left, but run nothing.", is_setting=False),
    samples=Option("Attempts per problem; sample k uses seed + k."),
    timeout=Option("Time limit per attempt, in seconds. Default: none."),
)
def bench(
    *,
    problems: ProblemOptions,
    bench: BenchOptions,
    reward: RewardSource | None = None,
    json_line: bool = False,
    options: Options,
    output: OutputOptions,
) -> int:
    """Measure the accuracy and time of policies on a data set.

    Each result is saved at once, and the same command resumes an interrupted run as it was decided when it began. You can
    add problems, samples, policies and taus to a run. With --concurrency, several problems are solved at once. The results
    are the same, and the run gets its own folder.

    \b
    Examples:
      arbitrage bench --dataset builtin --policy target,draft,arbitrage,logprob@0.3
      arbitrage bench --dataset math500 --pair llama3 --limit 100
      arbitrage bench --dataset problems.jsonl --map question=prompt,answer=gold --pair mine
    """
    from arbitrage_cli.app.bench import preview, run_bench
    from arbitrage_cli.app.problem_source import default_folder, select_problems
    from arbitrage_cli.app.request import ask_to_compare
    from arbitrage_cli.app.resume import begun_options, begun_reward
    from arbitrage_cli.display.facts import plan_facts
    from arbitrage_cli.model_files.pairs import hub_name, local_files
    from arbitrage_cli.problems.tasks import find_task
    from arbitrage_cli.runs.folder import begun_run
    from arbitrage_cli.runs.records import BENCH

    if bench.dry_run and "json_line" in options.explicit:
        raise UsageError("cannot be used with --dry-run", "leave it out", option="json_line")
    with command_display(output) as display:
        selected = select_problems(problems, seed=options.seed, offline=options.offline)
        task, path = find_task(options.task or selected.dataset.task), bench.output_folder
        if path is None:
            request = ask_to_compare(options, task, reward)
            names, concurrency = request.named.names, request.concurrency
            path = default_folder(selected.dataset.name, names, concurrency=concurrency)
        began = None if bench.fresh else begun_run(path, BENCH)
        options = begun_options(options, began)
        task = find_task(options.task or selected.dataset.task)
        task = task if bench.dry_run else permitted(task, problems.run_code)
        request = ask_to_compare(options, task, begun_reward(reward, began))
        if bench.dry_run:
            planned = preview(request, selected, path, bench)
            sources = planned.decided.sources.values()
            missing = {source for source in sources if hub_name(source) and not local_files(source)}
            for name, value in plan_facts(planned, missing, selected.title, path):
                typer.echo(f"{name:<10}{one_line(value)}")
            return 0
        with only_figures_on_stdout():
            run = run_bench(request, selected, path, bench, display)
        display.close()
        if not isinstance(sys.stdout, ClosedOutput):
            show_figures(*run.selected, FigureOptions(json_line=json_line))
        say(_conclusion(run), output)
    return SOME_FAILED if run.num_errors else 0


def _conclusion(run: "BenchRun") -> str:
    folder = shlex.quote(str(run.folder.path))
    status = "" if run.todo else "nothing to do: "
    errors = f"; {formatting.count(run.num_errors, 'error')} (the same command retries)" if run.num_errors else ""
    attempts = formatting.count(len(run.attempts), "attempt")
    return f"{status}{folder} has {attempts}{errors}; to see every trace: arbitrage report {folder} -o report.html"
