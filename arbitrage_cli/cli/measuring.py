"""Makes the attempts of a benchmark: loads the models, follows what happens, writes each row as soon as it is there."""

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from arbitrage_cli.cli.options import SOME_FAILED
from arbitrage_cli.cli.output import is_drawable, only_figures_on_stdout
from arbitrage_cli.cli.routing import make_rater, make_router, reads_hidden, sequences
from arbitrage_cli.cli.run_facts import Setup, add_loaded
from arbitrage_cli.cli.session import Engines, open_backends
from arbitrage_cli.cli.watchdog import Watchdog
from arbitrage_cli.display.protocol import AttemptEnded, AttemptStarted, Display, RunProgress
from arbitrage_cli.errors import ProblemError
from arbitrage_cli.evaluation.benchmark import Attempt, Began, Bench, Ended, failed_row
from arbitrage_cli.evaluation.standings import Standings
from arbitrage_cli.grading.grader import Grader
from arbitrage_cli.inference.backend import Backend
from arbitrage_cli.runs.folder import RunFolder, key_of, latest
from arbitrage_cli.types import Finished, ModelRole

SHOW_CURSOR = b"\x1b[?25h"
SLOWEST_BATCH = 30.0
"""Seconds that a computation may take beyond the time of its attempt, before it is held to hang: a large model is slow to read."""


@dataclass(frozen=True, slots=True)
class Work:
    """All attempts that were asked for, those of them that are `left` to be made, and where their rows go."""

    setup: Setup
    attempts: Sequence[Attempt]
    left: Sequence[Attempt]
    folder: RunFolder
    display: Display

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
        policies = {attempt.policy_at_tau.policy for attempt in work.left}
        num_sequences = sequences(policies, setup.reward, concurrency=setup.concurrency or 1)
        load = replace(setup.load, hidden_states=reads_hidden(policies, setup.head))
        backends = open_backends(setup.sources, setup.found, load, setup.threads, work.display, stack, num_sequences)
        bench = _make_bench(work, backends, grader, timeout)
        for attempt in work.left:
            bench.engines_for(attempt.policy_at_tau, attempt.sample)
        work.folder.save_run(add_loaded(run, backends))
        patience = timeout + max(timeout, SLOWEST_BATCH) if timeout else None
        watchdog = stack.enter_context(Watchdog(patience, _end_of(work, patience or 0.0)))
        _follow(bench, work, watchdog)


def _make_bench(work: Work, backends: Mapping[ModelRole, Backend], grader: Grader, timeout: float | None) -> Bench:
    """Whatever the policies need that are to be measured: engines, routers, and whoever rates steps. UsageError, RouterError."""
    setup = work.setup
    policies = {attempt.policy_at_tau.policy.name: attempt.policy_at_tau.policy for attempt in work.left}
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


def _follow(bench: Bench, work: Work, watchdog: Watchdog) -> None:
    columns = list(dict.fromkeys(attempt.policy_at_tau for attempt in work.attempts))
    standings = Standings(columns, len(work.attempts) // len(columns), work.setup.concurrency or 1)
    by_key = {attempt.key: attempt for attempt in work.attempts}
    for row in latest(work.folder.rows):
        if key_of(row) in by_key:
            standings.add(by_key[key_of(row)], row)
    waiting = Counter(attempt.policy_at_tau for attempt in work.left)

    def progress() -> RunProgress:
        finished = len(work.attempts) - waiting.total()
        title = f"bench {work.setup.dataset.name}"
        return RunProgress(title, finished, len(work.attempts), standings.now(), standings.seconds_left(waiting))

    work.display.begin(progress())
    going_on: dict[str, Attempt] = {}  # by problem: those that go on together differ in nothing else
    with contextlib.closing(bench.run(work.left)) as happenings:
        for happening in happenings:
            if isinstance(happening, Began):
                going_on[happening.attempt.item.problem.id] = happening.attempt
                name = happening.attempt.item.problem.id
                work.display.handle(AttemptStarted(name, happening.attempt.policy_at_tau.label))
                watchdog.began(happening.attempt)
            elif isinstance(happening, Ended):
                with watchdog.undisturbed:
                    work.folder.append(happening.row)
                standings.add(happening.attempt, happening.row)
                waiting[happening.attempt.policy_at_tau] -= 1
                work.display.handle(_outcome(happening, progress()))
            else:
                if isinstance(happening, Finished):
                    watchdog.ended(going_on.pop(happening.trace.problem.id))
                work.display.handle(happening)


def _outcome(ended: Ended, progress: RunProgress) -> AttemptEnded:
    row, attempt = ended.row, ended.attempt
    failed = row["status"] == "error"
    verdict, detail = ("error", row["error"]) if failed else (row["score"]["value"], row["score"]["answer"] or "")
    seconds = None if "throughput" in row else row["wall_seconds"]
    return AttemptEnded(row["id"], attempt.policy_at_tau.label, verdict, detail, seconds, progress)


def _end_of(work: Work, seconds: float) -> Callable[[Sequence[Attempt]], NoReturn]:
    """What to do about attempts that hang where no exception reaches them: note that, and end the process."""

    def end(attempts: Sequence[Attempt]) -> NoReturn:
        error = ProblemError(f"hung in one step until {seconds:g} s were over")
        told = ""
        for attempt in attempts:
            work.folder.append(failed_row(attempt, error, work.setup.limits, seconds))
            told += f"arbitrage: {attempt.item.problem.id}, {attempt.policy_at_tau.label}: {error}\n"
        told += f"  {work.how_to_go_on}\n"
        os.write(2, (SHOW_CURSOR if is_drawable(sys.stderr) else b"") + told.encode("ascii", "backslashreplace"))
        os._exit(SOME_FAILED)

    return end
