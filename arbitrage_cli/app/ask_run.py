"""Takes `bench` and `collect` from their options to their request, their problems and their run folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from arbitrage_cli.app.naming import names_of
from arbitrage_cli.app.options import BenchOptions, CollectOptions, Options, ProblemOptions
from arbitrage_cli.app.permission import permitted
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.app.request import Request
from arbitrage_cli.app.resume import Resumed, restore
from arbitrage_cli.app.run_names import default_folder
from arbitrage_cli.app.selection import Selection, select_problems
from arbitrage_cli.errors import UsageError
from arbitrage_cli.problems.tasks import find_task
from arbitrage_cli.routing.policies import refuse_sampling
from arbitrage_cli.runs.folder import run_to_resume
from arbitrage_cli.runs.records import BENCH, Kind


@dataclass(frozen=True, slots=True)
class AskedRun:
    """The request of `bench` or `collect`, its problems, its number of samples, and its run folder."""

    request: Request
    selected: Selection
    path: Path
    samples: int = 1


def ask_for_run(
    ask: Callable[..., Request],
    options: Options,
    problems: ProblemOptions,
    run: BenchOptions | CollectOptions,
    kind: Kind,
    display: Display | None = None,
    *,
    runs_programs: bool = True,
) -> AskedRun:
    """Return the request that `ask` makes: `ask_to_compare` for `bench`, `ask_to_collect` for `collect`.

    If the folder has a run, its options are restored before problems are drawn or models are found. Raises the same errors as
    `ask`, `restore` and `permitted`.
    """
    if problems.ids and "limit" in options.explicit:
        raise UsageError("cannot be combined with --limit", "use one of the two options", option="ids")
    path = run.output_folder or _folder_of(kind, problems, options)
    resumed = None if run.fresh else Resumed.of(run_to_resume(path, kind), path, options, display)
    named_now = problems.dataset
    options, problems, run = restore(resumed, options, problems, run)
    selected = select_problems(
        problems,
        seed=options.seed,
        offline=options.offline or problems.dataset != named_now,  # a run chooses no download
        needs_answers=kind == BENCH,
        resumed=resumed,
    )
    task = find_task(options.task or selected.dataset.task)
    if runs_programs:
        task = permitted(task, problems.run_code)
    request = ask(options, task, run.reward, resumed, others=(problems, run))
    samples = run.samples if isinstance(run, BenchOptions) else 1
    refuse_sampling(request.all_policies, options.temperature, samples)
    return AskedRun(request, selected, path, samples)


def _folder_of(kind: Kind, problems: ProblemOptions, options: Options) -> Path:
    """Return a run's default folder. Runs with concurrent problems have their own folder, because their times differ."""
    if kind == BENCH:
        return default_folder(problems.dataset, names_of(options), concurrency=options.concurrency or 1)
    return default_folder(problems.dataset, names_of(options), prefix="collect-")
