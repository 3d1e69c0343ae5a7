"""Recommends a policy for a pair: measures token costs, then compares policies on a few problems until one is clearly best."""

import hashlib
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from arbitrage_cli.app.bench_run import measure, plan_run
from arbitrage_cli.app.model_choice import ModelChoice, choose_models, load_options
from arbitrage_cli.app.options import (
    AdviceOptions,
    BenchRoutingOptions,
    GenerationOptions,
    LoadingOptions,
    MachineOptions,
    ProblemOptions,
    RouterOptions,
    ThreadOptions,
    given_options,
    resuming,
)
from arbitrage_cli.app.protocol import Display, Watcher, offering_to_resume
from arbitrage_cli.app.selection import Selection, default_folder, read_problems
from arbitrage_cli.app.sentences import sentence
from arbitrage_cli.app.session import Session, fetch
from arbitrage_cli.app.setup import RunOptions, for_bench, for_resumed_bench
from arbitrage_cli.app.stored_run import open_run
from arbitrage_cli.data.rows import make_dataset
from arbitrage_cli.errors import UsageError
from arbitrage_cli.evaluation.metrics import figures
from arbitrage_cli.evaluation.verdict import Verdict, verdict
from arbitrage_cli.model_files.checksums import sha256_seen
from arbitrage_cli.model_files.pairs import (
    PairEntry,
    is_built_in,
    is_file,
    is_served,
    local_files,
    router_file,
    save_pair,
)
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.runs.folder import Row, RunFolder, latest
from arbitrage_cli.stats import rounding
from arbitrage_cli.system.files import user_folder
from arbitrage_cli.tasks import FORMS, find_task
from arbitrage_cli.tasks.task import Task
from arbitrage_cli.tuning.measure import ModelCosts, measure_and_keep
from arbitrage_cli.tuning.placement import place, tuned_file
from arbitrage_cli.tuning.store import forget_tuned
from arbitrage_cli.types import ModelRole

MOST_PROBLEMS = 40
LOOKS = (5, 8, 20, 30)
"""The numbers of problems after which a verdict may end the run. There are few, because each look may be wrong by chance."""
BENCHMARK = 100
"""The number of problems in the suggested benchmark if `MOST_PROBLEMS` problems give no decision."""


@dataclass(frozen=True, slots=True)
class AdviceRequest:
    """The options and problems of a request. `problem_arguments` are the command-line options that select the problems."""

    options: RunOptions
    choice: ModelChoice
    selected: Selection
    task: Task
    minutes: float = 10.0
    folder: Path | None = None
    fresh: bool = False
    problem_arguments: Sequence[str] = ()

    def arguments(self, *, with_router: bool = True) -> list[str]:
        """Return the command-line options that select these models and settings."""
        options = self.options
        is_named = options.explicit & {"draft", "target", "pair"}
        explicit = options.explicit if with_router else options.explicit - {"router"}
        given = given_options(explicit, options.models, options.generation, options.machine)
        return [*([] if is_named else self.choice.arguments), *given]


def request_of(
    advice: AdviceOptions,
    models: RouterOptions,
    generation: GenerationOptions,
    machine: ThreadOptions,
    *,
    explicit: frozenset[str],
    command: Sequence[str],
) -> AdviceRequest:
    """Resolve the options of `advise`. Raises UsageError if an option is invalid; HubError if a download fails."""
    problems = ProblemOptions(dataset=advice.dataset or "builtin", mapping=advice.mapping, limit=str(MOST_PROBLEMS))
    selected = read_problems(problems, seed=generation.seed, offline=models.offline, needs_answers=False)
    task = find_task(generation.task or selected.dataset.task)
    choice = choose_models(explicit, models, task.name)
    if advice.save and not choice.is_pairs_own:
        hint = "add these two models to pairs.toml, then use --pair NAME"
        raise UsageError("can only be used with a named pair", hint, option="save")
    loading = MachineOptions(**asdict(machine))
    options = RunOptions(models, generation, loading, task, explicit=explicit, command=command)
    folder, fresh = advice.output_folder, advice.fresh
    return AdviceRequest(options, choice, selected, task, advice.minutes, folder, fresh, advice.problems)


@dataclass(frozen=True, slots=True)
class Advice:
    """The verdict on a pair and the benchmark figures that support it. `verdict` is None if every attempt failed.

    `command` is the command line to run next, or "" if more questions are needed first.
    """

    verdict: Verdict | None
    figures: Mapping[str, Any]
    command: str

    @property
    def num_errors(self) -> int:
        """The number of failed attempts."""
        return sum(one["errors"] for one in self.figures["policies"])

    @property
    def is_decided(self) -> bool:
        return self.verdict is not None and self.verdict.decision != "not decided"

    @property
    def policy(self) -> str | None:
        """The recommended policy, or None if there is no decision."""
        return self._route[0] if self.is_decided else None

    @property
    def tau(self) -> str | None:
        """The recommended preset or threshold, or None if the policy has no tau."""
        return self._route[1] or None

    @property
    def speedup(self) -> float | None:
        """The speed-up of the best policy over the target alone."""
        return self.verdict.best.speedup if self.verdict else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% confidence interval of the speed-up, or None if there are too few problems."""
        return self.verdict.best.interval if self.verdict else None

    @property
    def sentence(self) -> str:
        """The verdict as a sentence."""
        if not self.verdict:
            return f"There is nothing to compare: {rounding.count(self.num_errors, 'attempt')} failed."
        return sentence(self.figures["verdict"])

    @property
    def _route(self) -> tuple[str, str]:
        policy, _, tau = ((self.verdict.route if self.verdict else None) or "target").partition("@")
        return policy, tau


def advise(request: AdviceRequest, display: Display) -> Advice:
    """Measure missing token costs, compare the policies, and return the advice. Repeating a request resumes an interrupted run.

    Raises UsageError if an option is invalid; RouterError, ModelError, HubError or ServerError if a router or model cannot be
    used.
    """
    options, routing = replace(request.options, task=request.task), BenchRoutingOptions(policy=_policies(request.choice))
    for_bench(options, routing)  # refuses wrong options before anything is measured
    _measure_missing_costs(request, display)
    setup = for_bench(options, routing)
    path = request.folder or default_folder(request.selected.dataset.name, request.choice, prefix="advise--")
    with open_run(path, display, fresh=request.fresh) as folder:
        setup = for_resumed_bench(setup, folder.run if folder.rows else None, early_stop=None)
        enough = Enough(folder, len(setup.routes), request.minutes)
        with Session(setup, display) as session:
            run = plan_run(session, shuffled(request.selected), folder)
            run = replace(run, title=f"advise {request.selected.title}")
            with offering_to_resume(display, lambda error: run.how_to_resume):
                if run.todo.all and not (folder.rows and enough.is_decided()):
                    measure(run, display, None, enough, enough.seconds_left)
        made, rows = finished(folder, len(setup.routes))
    found = figures(made, rows, out_of_time=enough.out_of_time)
    decided = verdict(found, out_of_time=enough.out_of_time)
    return Advice(decided, found, _command(request, decided, path))


def advise_on(
    questions: Iterable[str | Mapping[str, Any]],
    options: RunOptions,
    choice: ModelChoice,
    task: Task,
    *,
    minutes: float = 10.0,
    display: Display,
) -> Advice:
    """Return advice based on questions, each a string or a mapping that may include an answer. The run folder is temporary.

    Raises UsageError if a question is invalid, and the same errors as `advise`.
    """
    rows = ({"question": one} if isinstance(one, str) else one for one in questions)
    dataset = make_dataset("questions", enumerate(rows, start=1), needs_answers=False, forms=FORMS)
    selected = Selection(dataset, dataset.items[:MOST_PROBLEMS])
    with TemporaryDirectory() as folder:
        return advise(AdviceRequest(options, choice, selected, task, minutes, Path(folder, "run")), display)


def measure_costs(
    choice: ModelChoice, loading: LoadingOptions, display: Watcher, *, offline: bool
) -> dict[ModelRole, ModelCosts]:
    """Measure and store the token costs of both models.

    Raises UsageError if llama.cpp cannot run a model on this machine; OutputError if the costs cannot be stored.
    """
    paths = fetch(_local_models(choice), display, offline=offline)
    return measure_and_keep(paths, load_options(choice.pair, loading), display.loading, display.note)


def forget_costs(choice: ModelChoice) -> int:
    """Remove the stored costs of both models and return how many measurements were removed."""
    return forget_tuned(
        tuned_file(), {sha256_seen(files) for one in _local_models(choice).values() if (files := local_files(one))}
    )


def save_advice(advice: Advice, pair: PairEntry, router: str | None) -> Path:
    """Save the recommended policy, and its router if it needs one, to the pair's entry in pairs.toml."""
    policy = advice.policy or "target"
    path, changed = user_folder() / "pairs.toml", replace(pair, policy=policy, tau=advice.tau)
    if router and POLICIES[policy].needs_router:
        changed = replace(changed, router=router if is_built_in(router) else str(router_file(router).absolute()))
    save_pair(path, changed)
    return path


def shuffled(selected: Selection) -> Selection:
    """Return the problems in pseudo-random order, so that the first problems are a representative sample."""
    drawn = sorted(selected.items, key=lambda item: hashlib.sha256(item.problem.id.encode()).digest())
    return replace(selected, items=drawn)


class Enough:
    """Decides when a run stops: at a final verdict, or at a time limit that starts with the first problem."""

    def __init__(
        self, folder: RunFolder, num_routes: int, minutes: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._num_routes, self._seconds, self._clock = folder, num_routes, 60 * minutes, clock
        self._began: float | None = None
        self.out_of_time = False

    def __call__(self) -> bool:
        if self._began is None:
            self._began = self._clock()
        self.out_of_time = self._clock() - self._began > self._seconds
        return self.out_of_time or self.is_decided()

    def seconds_left(self) -> float:
        """Return the seconds left in which new problems may start."""
        return self._seconds if self._began is None else max(0.0, self._began + self._seconds - self._clock())

    def is_decided(self) -> bool:
        """Return whether the verdict is final; it is checked only at the problem counts in `LOOKS`."""
        run, rows = finished(self._folder, self._num_routes)
        if len(run["levels"]) not in LOOKS:
            return False
        found = verdict(figures(run, rows))
        return found is not None and found.final


def finished(folder: RunFolder, num_routes: int) -> tuple[dict[str, Any], list[Row]]:
    """Return the run and its rows, limited to problems that every policy has attempted."""
    rows: list[Row] = list(latest(folder.rows))
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["id"]] = counts.get(row["id"], 0) + 1
    run = folder.run or {}
    levels = {name: level for name, level in run["levels"].items() if counts.get(name) == num_routes}
    return {**run, "levels": levels}, [row for row in rows if row["id"] in levels]


def _policies(choice: ModelChoice) -> str:
    """Return the policies that this pair supports, in the syntax of `bench --policy`."""
    on_server = any(source and is_served(source) for source in choice.models.values())
    speculative = [] if on_server else ["speculative"]
    routed = ["arbitrage@exact", "arbitrage@balanced"] if choice.router_source else []
    return ",".join(["target", *speculative, *routed, "draft"])


def _local_models(choice: ModelChoice) -> dict[ModelRole, str]:
    """Return the draft and the target. Raises UsageError if llama.cpp cannot run a model on this machine."""
    found = choice.writing
    for source in found.values():
        if not is_file(source):
            raise UsageError(f"{source}: llama.cpp cannot run this model", "use a GGUF file or a model on the Hub")
    return found


def _measure_missing_costs(request: AdviceRequest, display: Display) -> None:
    """Measure token costs unless they are already stored, --threads is set, or a model is on a server."""
    machine, choice, offline = request.options.machine, request.choice, request.options.models.offline
    if machine.threads or not all(map(is_file, choice.writing.values())):
        return
    paths = fetch(choice.writing, display, offline=offline)
    if place(paths, load_options(choice.pair, machine)).costs is None:
        measure_costs(choice, machine, display, offline=offline)


def _command(request: AdviceRequest, verdict: Verdict | None, folder: Path) -> str:
    """Return the next command line: `solve` with the recommended policy, or a command that helps to reach a decision."""
    options, selected = request.options, request.selected
    if verdict is None:
        return resuming(options.command)
    if verdict.decision != "not decided":
        return shlex.join(_solving(verdict.route or "target", request))
    if verdict.needs_answers:
        return shlex.join(["arbitrage", "report", str(folder), "-o", "report.html"])
    if verdict.out_of_time:
        return resuming(options.command) + ("" if "minutes" in options.explicit else f" --minutes {3 * request.minutes:g}")
    if len(selected.items) == len(selected.dataset.items):
        return ""
    if not all(item.gold for item in selected.dataset.items):
        return "arbitrage guide benchmarks"  # a benchmark needs answers, and the guide says where they come from
    bench = ["arbitrage", "bench", *request.problem_arguments, "--limit", str(BENCHMARK)]
    return shlex.join([*bench, *request.arguments(), "--policy", _policies(request.choice)])


def _solving(route: str, request: AdviceRequest) -> list[str]:
    policy, _, tau = route.partition("@")
    of_data = request.selected.dataset.task if request.options.generation.task is None else None
    return [
        *("arbitrage", "solve", *request.arguments(with_router=POLICIES[policy].needs_router)),
        *(["--task", of_data] if of_data else []),
        *("--policy", policy, *(["--tau", tau] if tau else []), "PROBLEM"),
    ]
