"""Makes the attempts of a benchmark: loads the models, follows what happens, writes each row as soon as it is there."""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from arbitrage_cli.cli.output import only_figures_on_stdout
from arbitrage_cli.cli.routing import make_rater, make_router, reads_hidden, sequences
from arbitrage_cli.cli.run_facts import Setup, add_loaded
from arbitrage_cli.cli.session import Engines, open_backends
from arbitrage_cli.display.progress import Outcome, Progress, State
from arbitrage_cli.evaluation.benchmark import Attempt, Began, Bench, Ended, Standings
from arbitrage_cli.grading.grader import Grader
from arbitrage_cli.inference.backend import Backend
from arbitrage_cli.runs.folder import RunFolder, key_of, latest
from arbitrage_cli.types import ModelRole


@dataclass(frozen=True, slots=True)
class Work:
    """All attempts that were asked for, those of them that are `left` to be made, and where their rows go."""

    setup: Setup
    attempts: Sequence[Attempt]
    left: Sequence[Attempt]
    folder: RunFolder
    display: Progress

    @property
    def num_safe(self) -> int:
        """How many attempts have a row."""
        return len({attempt.key for attempt in self.attempts} & {key_of(row) for row in self.folder.rows})

    @property
    def how_to_go_on(self) -> str:
        """What is safe, and the command that goes on; "" if there is nothing yet."""
        safe = f"{self.num_safe} of {len(self.attempts)} attempts are safe in {self.folder.path}"
        return f"{safe}; to go on: {self.setup.to_go_on}" if self.num_safe else ""


def measure(work: Work, run: Mapping[str, Any], timeout: float | None) -> None:
    """Make the attempts that are left. `run` is the content of run.json so far. Loading and warm-up are not timed."""
    setup = work.setup
    with contextlib.ExitStack() as stack:
        stack.enter_context(only_figures_on_stdout())
        grader = stack.enter_context(Grader())
        policies = {attempt.column.policy for attempt in work.left}
        num_sequences = sequences(policies, setup.reward, concurrency=setup.concurrency or 1)
        load = replace(setup.load, hidden_states=reads_hidden(policies, setup.head))
        backends = open_backends(setup.sources, setup.found, load, setup.threads, work.display, stack, num_sequences)
        bench = _make_bench(work, backends, grader, timeout)
        for attempt in work.left:
            bench.engines_for(attempt.column, attempt.sample)
        work.folder.save_run(add_loaded(run, backends))
        _follow(bench, work)


def _make_bench(work: Work, backends: Mapping[ModelRole, Backend], grader: Grader, timeout: float | None) -> Bench:
    """Whatever the policies need that are to be measured: engines, routers, and whoever rates steps. UsageError, RouterError."""
    setup = work.setup
    policies = {attempt.column.policy.name: attempt.column.policy for attempt in work.left}
    routers = {name: make_router(policy, setup.head, backends, setup.found) for name, policy in policies.items()}
    golds = {attempt.item.problem.id: attempt.item.gold for attempt in work.left}

    def is_right(problem: str, text: str) -> bool:
        return grader.reaches(text, golds[problem])

    raters = {
        name: make_rater(
            policy,
            backends,
            reward=setup.reward,
            instructions=setup.system,
            is_right=is_right,
            concurrency=setup.concurrency or 1,
            prm_style=setup.prm_style,
        )
        for name, policy in policies.items()
    }
    return Bench(
        Engines(backends, setup.sampler, setup.system),
        grader.grade,
        setup.limits,
        setup.sampler.seed,
        timeout,
        router_for=lambda policy: routers[policy.name],
        rater_for=lambda policy: raters[policy.name],
        concurrency=setup.concurrency or 1,
        stops_early=bool(setup.stops_early),
    )


def _follow(bench: Bench, work: Work) -> None:
    columns = list(dict.fromkeys(attempt.column for attempt in work.attempts))
    standings = Standings(columns, len(work.attempts) // len(columns), work.setup.concurrency or 1)
    by_key = {attempt.key: attempt for attempt in work.attempts}
    for row in latest(work.folder.rows):
        if key_of(row) in by_key:
            standings.add(by_key[key_of(row)], row)
    waiting = Counter(attempt.column for attempt in work.left)

    def state() -> State:
        finished = len(work.attempts) - waiting.total()
        return State(finished, len(work.attempts), standings.now(), standings.seconds_left(waiting))

    work.display.begin(f"bench {work.setup.dataset.name}", state())
    with contextlib.closing(bench.run(work.left)) as happenings:
        for happening in happenings:
            if isinstance(happening, Began):
                work.display.start(happening.attempt.item.problem.id, happening.attempt.column.label)
            elif isinstance(happening, Ended):
                work.folder.append(happening.row)
                standings.add(happening.attempt, happening.row)
                waiting[happening.attempt.column] -= 1
                work.display.finish(_outcome(happening), state())
            else:
                work.display.handle(happening)


def _outcome(ended: Ended) -> Outcome:
    row, attempt = ended.row, ended.attempt
    failed = row["status"] == "error"
    verdict, detail = ("error", row["error"]) if failed else (row["score"]["value"], row["score"]["answer"] or "")
    seconds = None if "throughput" in row else row["wall_seconds"]
    return Outcome(row["id"], attempt.column.label, verdict, detail, seconds)
