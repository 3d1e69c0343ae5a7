"""Takes `bench` and `collect` from their options to their request, their problems and their run folder."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from arbitrage_cli.app.asking.naming import names_of
from arbitrage_cli.app.asking.needs import permitted
from arbitrage_cli.app.asking.request import Request
from arbitrage_cli.app.asking.resume import Resumed, restore
from arbitrage_cli.app.attempts.selection import Selection, select_problems
from arbitrage_cli.app.options import BenchOptions, CollectOptions, Options, ProblemOptions
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.errors import UsageError
from arbitrage_cli.problems.tasks import find_task
from arbitrage_cli.runs.folder import run_to_resume
from arbitrage_cli.runs.records import BENCH, Kind

MAX_NAME = 60  # characters in each half of a folder name
DIGEST = 8  # characters of a checksum in a name


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
    is_preview: bool = False,
) -> AskedRun:
    """Return the request that `ask` makes: `ask_to_compare` for `bench`, `ask_to_collect` for `collect`.

    If the folder has a run, its options are restored before problems are drawn or models are found. A preview downloads no
    models and runs no programs. Raises the same errors as `ask`, `restore` and `permitted`.
    """
    if problems.ids and "limit" in options.explicit:
        raise UsageError("cannot be combined with --limit", "use one of the two options", option="ids")
    path = run.output_folder or _folder_of(kind, problems, options)
    resumed = None if run.fresh else Resumed.of(run_to_resume(path, kind), path, options, display, is_preview=is_preview)
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
    if not is_preview:
        task = permitted(task, problems.run_code)
    request = ask(options, task, run.reward, resumed, others=(problems, run))
    return AskedRun(request, selected, path, run.samples if isinstance(run, BenchOptions) else 1)


def _folder_of(kind: Kind, problems: ProblemOptions, options: Options) -> Path:
    """Return a run's default folder. Runs with concurrent problems have their own folder, because their times differ."""
    if kind == BENCH:
        return default_folder(problems.dataset, names_of(options), concurrency=options.concurrency or 1)
    return default_folder(problems.dataset, names_of(options), prefix="collect-")


def default_folder(dataset: str, models: Sequence[str], *, prefix: str = "", concurrency: int = 1) -> Path:
    """Return the default run folder, such as `runs/math500--mine`, or `runs/math500--mine--concurrency-8`."""
    names = [PurePath(name).name.removesuffix(".gguf") for name in models]
    suffix = "" if concurrency == 1 else f"--concurrency-{concurrency}"
    return Path("runs") / f"{prefix}{_file_name(PurePath(dataset).stem)}--{_file_name(*names)}{suffix}"


def _file_name(*names: str) -> str:
    """Join names into a valid file name. A long name is truncated and made unique by a checksum."""
    plain = (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") for name in names)
    whole = "-".join(filter(None, plain)) or "run"
    digest = hashlib.sha256(whole.encode()).hexdigest()[:DIGEST]
    return whole if len(whole) <= MAX_NAME else f"{whole[: MAX_NAME - DIGEST]}-{digest}"
