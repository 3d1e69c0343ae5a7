"""Takes `arbitrage advise` from its options to its advice: the problems, the run folder, the request and the comparison."""

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from arbitrage_cli.app.advise import Advice, advise
from arbitrage_cli.app.gather import router_of_request
from arbitrage_cli.app.options import AdviceOptions, Options, ProblemOptions
from arbitrage_cli.app.permission import permitted
from arbitrage_cli.app.prepare import fetch
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.app.request import Begun, Request, ask_to_compare
from arbitrage_cli.app.resume import restored, restored_options
from arbitrage_cli.app.run_names import advice_folder
from arbitrage_cli.app.saved_pair import entry_of
from arbitrage_cli.app.selection import Selection, sample_of, select_problems
from arbitrage_cli.app.solve_command import SolveCommand
from arbitrage_cli.app.start import session_of
from arbitrage_cli.errors import PairNotSavedError
from arbitrage_cli.model_files.own_pairs import add_pair, check_can_add, check_name, own_file
from arbitrage_cli.problems.tasks import Task, find_task
from arbitrage_cli.runs.folder import begun_run
from arbitrage_cli.runs.records import ADVISE
from arbitrage_cli.types import Fields

MOST_PROBLEMS = 40
USABLE = 0.95  # share of the time until the last attempt ends; the rest is for starting and for the answer


def advise_pair(options: Options, advice: AdviceOptions, display: Display) -> Advice:
    """Return advice. If the folder has a run, it is continued. With a verdict, the pair is saved, if this was asked for.

    Raises UsageError if an option is invalid; PairNotSavedError if the pair could not be saved with a verdict; and the same
    errors as `advise`.
    """
    ends = _end(advice.minutes)
    path = advice.output_folder
    if path is None:
        request, selected = _ask(options, advice, None)
        fetch(request.models_for(request.asked), display, offline=options.offline)  # the folder is named after the files
        path = advice_folder(request, router_of_request(request), selected.dataset)
    earlier = None if advice.fresh else begun_run(path, ADVISE)
    request, selected = _ask(options, advice, Begun.of(earlier, path, options, display))
    if selected.dataset.name == "builtin" and not advice.dataset:
        display.tell("using built-in problems; to use your own, add --dataset FILE, with one question per line")
    made = advise(session_of(request), selected, path, advice, display, ends)
    if advice.save and made.verdict.is_decided and not made.is_approximate:
        return _saved(made, request, selected, advice.save)
    return made


def advise_on(
    questions: Iterable[str | Fields], options: Options, task: Task, *, minutes: float, display: Display
) -> Advice:
    """Return advice based on questions with or without answers. Raises the same errors as `advise`."""
    selected = sample_of(questions, MOST_PROBLEMS, options.seed)
    request = ask_to_compare(options, task, advises=True)
    with TemporaryDirectory() as folder:
        path, advice = Path(folder, "run"), AdviceOptions(minutes=minutes)
        return advise(session_of(request), selected, path, advice, display, _end(minutes), is_repeatable=False)


def _ask(options: Options, advice: AdviceOptions, began: Begun | None) -> tuple[Request, Selection]:
    """Return the request and the problems. Raises the same errors as `ask_to_compare`."""
    run = began.run if began else None
    kept, found = restored(advice, options.explicit, run), restored_options(options, run)
    problems = ProblemOptions(dataset=kept.dataset or "builtin", mapping=kept.mapping, limit=str(MOST_PROBLEMS))
    offline = options.offline or kept.dataset != advice.dataset  # a run chooses no download
    of_run = run.levels if run else ()
    selected = select_problems(problems, seed=found.seed, offline=offline, needs_answers=False, of_run=of_run)
    task = permitted(find_task(found.task or selected.dataset.task), advice.run_code)
    request = ask_to_compare(options, task, None, began, advises=True, others=(kept,))
    if advice.save:
        check_name(advice.save)
        check_can_add(own_file(), entry_of(request, advice.save))
    return request, selected


def _saved(made: Advice, request: Request, selected: Selection, name: str) -> Advice:
    """Return the advice after its pair was saved. If it was not, return the error with the advice, which took minutes."""
    entry = replace(entry_of(request, name), policy=made.policy, tau=made.tau)
    try:
        add_pair(own_file(), entry)
    except PairNotSavedError as error:
        return replace(made, not_saved=error)
    command = SolveCommand.of(request).with_pair(name, selected.dataset.task)
    return replace(made, saved=entry, command=command)


def _end(minutes: float) -> float:
    return time.monotonic() + USABLE * 60 * minutes
