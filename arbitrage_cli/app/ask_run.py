"""Takes `bench` and `collect` from their options to their request, their problems and their run folder."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from arbitrage_cli.app.naming import names_of
from arbitrage_cli.app.options import BenchOptions, CollectOptions, Options, ProblemOptions
from arbitrage_cli.app.permission import permitted
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.app.request import Begun, Request
from arbitrage_cli.app.resume import restored, restored_options
from arbitrage_cli.app.run_names import default_folder
from arbitrage_cli.app.selection import Selection, select_problems
from arbitrage_cli.errors import UsageError
from arbitrage_cli.problems.tasks import find_task
from arbitrage_cli.routing.policies import refuse_sampling
from arbitrage_cli.runs.folder import begun_run
from arbitrage_cli.runs.records import BENCH, Kind
from arbitrage_cli.runs.run import Run


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

    If the folder has a run, the request continues it: the run is found before problems are drawn or models are found. Raises
    the same errors as `ask`, `restored` and `permitted`.
    """
    path = run.output_folder or _folder_of(kind, problems, options)
    earlier = None if run.fresh else begun_run(path, kind)
    run = restored(run, options.explicit, earlier)
    kept = _restored_problems(problems, options.explicit, earlier)
    offline = options.offline or kept.dataset != problems.dataset  # a run chooses no download
    found = restored_options(options, earlier)
    selects = not options.explicit.isdisjoint({"limit", "ids"}) or not (kept.limit or kept.ids)
    selected = select_problems(
        kept,
        seed=found.seed,
        offline=offline,
        needs_answers=kind == BENCH,
        of_run=earlier.levels if earlier else (),
        adds=earlier is None or selects,
    )
    task = find_task(found.task or selected.dataset.task)
    if runs_programs:
        task = permitted(task, problems.run_code)
    began = Begun.of(earlier, path, options, display)
    request = ask(options, task, run.reward, began, others=(kept, run))
    samples = run.samples if isinstance(run, BenchOptions) else 1
    refuse_sampling(request.all_policies, request.options.temperature, samples)
    return AskedRun(request, selected, path, samples)


def _folder_of(kind: Kind, problems: ProblemOptions, options: Options) -> Path:
    """Return a run's default folder. Runs with concurrent problems have their own folder, because their times differ."""
    if kind == BENCH:
        return default_folder(problems.dataset, names_of(options), concurrency=options.concurrency or 1)
    return default_folder(problems.dataset, names_of(options), prefix="collect-")


def _restored_problems(problems: ProblemOptions, typed: frozenset[str], began: Run | None) -> ProblemOptions:
    """Return the problems as `restored` does. A limit that was typed takes the place of the run's ids."""
    if problems.ids and "limit" in typed:
        raise UsageError("cannot be combined with --limit", "use one of the two options", option="ids")
    kept = restored(problems, typed, began)
    return replace(kept, ids=None) if "limit" in typed else kept
