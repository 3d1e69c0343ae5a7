"""Takes `arbitrage advise` from its options to its advice: the problems, the run folder, the request and the comparison."""

import hashlib
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

from arbitrage_cli.app.asking.default_policies import policies_of_advice
from arbitrage_cli.app.asking.naming import NamedModels, choose_models, names_of, router_now, system_of, template_sha256
from arbitrage_cli.app.asking.needs import needed_models, permitted
from arbitrage_cli.app.asking.request import Request, ask_to_compare
from arbitrage_cli.app.asking.resume import Resumed, restore, settings_of
from arbitrage_cli.app.attempts.selection import Selection, select_problems
from arbitrage_cli.app.commands.advise import Advice, advise
from arbitrage_cli.app.deciding.prepare import fetch
from arbitrage_cli.app.deciding.solve_command import SolveCommand
from arbitrage_cli.app.entries.ask_run import DIGEST, default_folder
from arbitrage_cli.app.entries.saved_pair import entry_of
from arbitrage_cli.app.entries.start import session_of
from arbitrage_cli.app.options import AdviceOptions, Options, ProblemOptions
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.costs.store import loading_of, machine_here
from arbitrage_cli.errors import PairNotSavedError
from arbitrage_cli.model_files.checksums import sha256_seen
from arbitrage_cli.model_files.own_pairs import add_pair, check_can_add, check_name, own_file
from arbitrage_cli.model_files.pairs import local_files
from arbitrage_cli.problems.rows import Dataset
from arbitrage_cli.problems.tasks import Task, find_task
from arbitrage_cli.routing.route import parse_routes
from arbitrage_cli.runs.folder import run_to_resume
from arbitrage_cli.runs.records import ADVISE
from arbitrage_cli.types import Json

MOST_PROBLEMS = 40
USABLE = 0.95  # share of the time until the last attempt ends; the rest is for starting and for the answer
ADVICE = "advise--"  # the beginning of the names of folders


def advise_pair(options: Options, advice: AdviceOptions, display: Display) -> Advice:
    """Return advice. If the folder has a run, it is continued. With a verdict, the pair is saved, if this was asked for.

    Raises UsageError if an option is invalid; PairNotSavedError if the pair could not be saved with a verdict; and the same
    errors as `advise`.
    """
    ends = _end(advice.minutes)
    path = advice.output_folder or _default_folder(options, advice, display)
    resumed = None if advice.fresh else Resumed.of(run_to_resume(path, ADVISE), path, options, display)
    named_now = advice.dataset
    options, advice = restore(resumed, options, advice)
    offline = options.offline or advice.dataset != named_now  # a run chooses no download
    selected = _select(options, advice, resumed, offline=offline)
    request = ask_to_compare(options, _task(options, advice, selected), None, resumed, advises=True, others=(advice,))
    if advice.save:
        check_name(advice.save)
        check_can_add(own_file(), entry_of(request, advice.save))
    if selected.dataset.name == "builtin" and not advice.dataset:
        display.tell("using built-in problems; to use your own, add --dataset FILE, with one question per line")
    made = advise(session_of(request), selected, path, advice, display, ends)
    if advice.save and made.verdict.is_decided and not made.is_approximate:
        return _saved(made, request, selected, advice.save)
    return made


def _default_folder(options: Options, advice: AdviceOptions, display: Display) -> Path:
    """Return the default run folder. It is named after the files of the models, which are downloaded if they are missing."""
    selected = _select(options, advice, None, offline=options.offline)
    task = _task(options, advice, selected)
    named = choose_models(options, task)
    policies = [policy for policy, _ in parse_routes(policies_of_advice(named, options, task))]
    fetch(needed_models(policies, named.sources, None), display, offline=options.offline)
    return advice_folder(options, named, task, selected.dataset)


def _select(options: Options, advice: AdviceOptions, resumed: Resumed | None, *, offline: bool) -> Selection:
    problems = ProblemOptions(dataset=advice.dataset or "builtin", mapping=advice.mapping, limit=str(MOST_PROBLEMS))
    return select_problems(problems, seed=options.seed, offline=offline, needs_answers=False, resumed=resumed)


def _task(options: Options, advice: AdviceOptions, selected: Selection) -> Task:
    return permitted(find_task(options.task or selected.dataset.task), advice.run_code)


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


def advice_folder(options: Options, named: NamedModels, task: Task, dataset: Dataset) -> Path:
    """Return the default run folder of `advise`. Other models, settings or problems have another folder.

    Raises ModelUnsupportedError if a model runs in llama.cpp, and llama.cpp cannot be imported.
    """
    content = json.dumps([_conditions(options, named, task), dataset.sha256])
    path = default_folder(dataset.name, names_of(options), prefix=ADVICE)
    return path.with_name(f"{path.name}--{hashlib.sha256(content.encode()).hexdigest()[:DIGEST]}")


def _conditions(options: Options, named: NamedModels, task: Task) -> Json:
    """Return the conditions on which advice depends: models by their checksums, the router, settings and the machine."""
    router = router_now(named, task)
    models = {
        str(role): sha256_seen(files) if (files := local_files(source)) else source
        for role, source in named.sources.items()
        if role != "prm"
    }
    return {
        "machine": None if named.served.keys() >= models.keys() else asdict(machine_here()),
        "loading": asdict(loading_of(named.load)),
        "models": models,
        "router": router.router.sha256 if router else None,
        "task": task.name,
        "settings": settings_of(replace(options, task=None)),  # the data set may have named the task
        "price": named.price,
        "system": system_of(options, named.pair, task),
        "chat_template_kwargs": dict(named.load.template_variables),
        "served": {role: template_sha256(one) for role, one in named.served.items()},
    }
