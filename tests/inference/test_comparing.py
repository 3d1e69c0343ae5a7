"""Answers are compared while other problems go on."""

import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from cli import TIMEOUT
from hash_language import SHORT, finished_of, hash_engines

from arbitrage_cli.arbitrage import CompareAnswers, Flow, single
from arbitrage_cli.errors import ProblemError
from arbitrage_cli.inference.scheduler import Job, Scheduler
from arbitrage_cli.types import Finished, Problem, Trace


def job(name: str, is_same: Callable[[], bool] | None = None, results: list[bool] | None = None) -> Job:
    """A problem that the draft solves, and whose answer is then compared."""

    def flow(trace: Trace) -> Flow:
        yield from single(trace, "draft")
        if is_same is not None:
            result = yield CompareAnswers(is_same)
            (results if results is not None else []).append(result)

    return Job(Problem(name, f"question {name}"), flow, SHORT)


def scheduler() -> Scheduler:
    return Scheduler(hash_engines(num_sequences=2), concurrency=2)


def test_other_problems_are_solved_during_a_comparison() -> None:
    other_is_solved, results, names = threading.Event(), list[bool](), list[str]()
    jobs = [job("0", lambda: other_is_solved.wait(TIMEOUT), results), job("1"), job("2")]
    for event in scheduler().run(jobs):
        if isinstance(event, Finished):
            names.append(event.trace.problem.id)
            if len(names) == 2:
                other_is_solved.set()
    assert (names[-1], results) == ("0", [True])


def test_a_comparison_that_fails_ends_its_problem() -> None:
    def fail() -> bool:
        raise ProblemError("cannot compare")

    errors = {event.trace.problem.id: event.error for event in finished_of(scheduler().run([job("0", fail), job("1")]))}
    assert isinstance(errors["0"], ProblemError)
    assert errors["1"] is None


def test_a_defect_of_a_comparison_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        finished_of(scheduler().run([job("0", lambda: bool(1 // 0))]))


def test_a_process_may_end_during_a_comparison() -> None:
    program = (
        "import threading; from arbitrage_cli.arbitrage import CompareAnswers; from arbitrage_cli.inference.comparing import Comparer;"
        "begun = threading.Event(); comparer = Comparer();"
        "comparer.start(0, CompareAnswers(lambda: begun.set() or threading.Event().wait())); begun.wait(); comparer.end()"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=TIMEOUT, check=False).returncode == 0
