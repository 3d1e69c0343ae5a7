"""A benchmark: the order of attempts, the content of a row, timing, and the standings of policies."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import made_up_runs
import pytest
from faults import results
from hash_language import SHORT, HashBackend, Recording
from hypothesis import given
from hypothesis import strategies as st
from made_up_tuning import unit_costs
from scripted_models import open_scripted

from arbitrage_cli.app.attempts.attempts import Attempt, RunCounts, missing
from arbitrage_cli.app.attempts.loop import Loop, Stopwatch
from arbitrage_cli.app.commands.bench import plan_attempts, row_of
from arbitrage_cli.app.models import LocalModel, Model, WriterOptions, Writers
from arbitrage_cli.app.protocol import AttemptStarted, LogDisplay
from arbitrage_cli.arbitrage import CompareAnswers, Flow, by_token_stats, single
from arbitrage_cli.errors import ComputeError, InterruptedRunError, ProblemError
from arbitrage_cli.inference.backend import Backend, Deadline, LoadOptions
from arbitrage_cli.inference.chat_template import PromptStyle
from arbitrage_cli.inference.engine import Engine, as_speculator
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Rater, Scheduler
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.problems.answers import boxed_answer
from arbitrage_cli.problems.rows import Item
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.results import Result
from arbitrage_cli.runs.rows import AttemptRow
from arbitrage_cli.types import Finished, Grade, ModelRole, Problem, RoleLimits, Step, Trace

TARGET, DRAFT = Route(POLICIES["target"], None), Route(POLICIES["draft"], None)
ENTROPY, RANDOM = Route(POLICIES["entropy"], 2.0), Route(POLICIES["random"], 0.5)
ALL = (TARGET, DRAFT, ENTROPY, RANDOM)


def item(number: int = 0, question: str | None = None, answer: str = "4") -> Item:
    return Item(Problem(f"p{number}", question or f"question {number}"), {"answer": answer}, level=number % 2)


def grade(text: str, gold: Mapping[str, Any]) -> Grade:
    is_right = str(gold["answer"]) in text
    return Grade("correct" if is_right else "incorrect", text[-5:] or None, "looked for it")


def writers(backends: Mapping[ModelRole, Backend], sampler: Sampler | None = None, **options: Any) -> Writers:
    models: dict[ModelRole, Model] = {role: LocalModel(backend, role) for role, backend in backends.items()}
    return Writers(models, WriterOptions(sampler or Sampler(), PromptStyle(), **options))


def hash_engines(sampler: Sampler) -> Writers:
    """Engines of two toy models; each solution depends on every token that is in a cache."""
    backends: dict[ModelRole, Backend] = {
        "draft": HashBackend("draft"),
        "target": HashBackend("target", merges=("ab",)),
    }
    return writers(backends, sampler)


@dataclass(frozen=True)
class Bench:
    """A loop over models without a session."""

    engines: Writers
    sampler: Sampler = Sampler()  # noqa: RUF009 - frozen
    grade: Callable[[str, Mapping[str, Any]], Grade] = grade
    raters: Mapping[str, Rater] = field(default_factory=dict)
    clock: Callable[[], float] = time.perf_counter
    timer: Callable[[], float] = time.perf_counter

    def loop(self, kept: "Kept") -> Loop:
        return Loop(
            self.scheduler,
            self.flow,
            RoleLimits(SHORT, SHORT),
            self.row,
            kept,
            sampler=self.sampler,
            kept=kept.kept,
            clock=self.clock,
            timer=self.timer,
        )

    def scheduler(self, attempt: Attempt) -> Scheduler:
        writers, rater = self.engines(attempt.route), self.raters.get(attempt.route.policy.name)
        return Scheduler(writers, rater=rater, speculator=as_speculator(writers.get("draft")))

    def flow(self, attempt: Attempt, trace: Trace) -> Flow:
        return attempt.route.flow(trace, self.sampler.seed + attempt.sample)

    def row(self, attempt: Attempt, finished: Finished, timing: Stopwatch) -> AttemptRow | None:
        if isinstance(finished.error, InterruptedRunError):
            return None
        return row_of(attempt, finished, timing, self.grade, boxed_answer)


def hash_bench(sampler: Sampler | None = None) -> Bench:
    chosen = sampler or Sampler()
    return Bench(hash_engines(chosen), chosen)


def scripted_bench(**options: Any) -> Bench:
    backends: dict[ModelRole, Backend] = {
        "draft": open_scripted("scripted:draft", LoadOptions()),
        "target": open_scripted("scripted:target", LoadOptions()),
    }
    return Bench(writers(backends), **options)


class Kept(LogDisplay):
    """Keeps every row of a loop, and the events that it shows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.events: list[object] = []

    def handle(self, event: object) -> None:
        self.events.append(event)

    def kept(self, row: AttemptRow) -> None:
        self.rows.append(row.to_dict())


def made(bench: Bench, attempts: Iterable[Attempt], kept: Kept | None = None) -> Kept:
    kept = kept or Kept()
    for attempt in bench.loop(kept).run(attempts):
        kept.events.append(attempt)
    return kept


def left_of(attempts: Sequence[Attempt], rows: Iterable[Mapping[str, Any]]) -> list[Attempt]:
    return missing(attempts, {(row["id"], row["sample"], row["policy"], row["tau"]): row["status"] for row in rows})


def rows(bench: Bench, attempts: Iterable[Attempt]) -> list[dict[str, Any]]:
    return made(bench, attempts).rows


def only_row(bench: Bench, question: str = "37 * 12 - 95", column: Route = ENTROPY, answer: str = "349") -> dict[str, Any]:
    (row,) = rows(bench, [Attempt(item(0, question, answer), 0, column)])
    return row


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def slow_down(monkeypatch: pytest.MonkeyPatch, clock: Clock, kind: type[Engine]) -> list[object]:
    """Have each tick of an engine take a second of this clock; returns the list of those that ticked."""
    tick, ticked = kind.tick, list[object]()

    def slow_tick(worker: Any) -> Any:
        clock.now += 1.0
        ticked.append(worker)
        return tick(worker)

    monkeypatch.setattr(kind, "tick", slow_tick)
    return ticked


@given(st.integers(1, 7), st.integers(1, 4), st.integers(1, 3))
def test_plan_has_everything_once_problem_by_problem(num_items: int, num_columns: int, samples: int) -> None:
    items, columns = [item(number) for number in range(num_items)], ALL[:num_columns]
    attempts = plan_attempts(items, columns, samples)
    assert len({attempt.key for attempt in attempts}) == len(attempts) == num_items * num_columns * samples
    assert [attempt.item for attempt in attempts] == sorted(
        [attempt.item for attempt in attempts], key=lambda one: items.index(one)
    )
    assert plan_attempts(items, columns, samples) == attempts


def test_a_policy_follows_each_other_policy_about_as_often() -> None:
    """A policy after a slow one may find other data in the processor's caches."""
    order = [attempt.route for attempt in plan_attempts([item(number) for number in range(400)], ALL, 1)]
    follows = Counter(itertools.pairwise(order))
    for route in ALL:
        before = [follows[other, route] for other in ALL if other != route]
        assert sum(before) > 330
        assert max(before) < 1.5 * min(before)
    firsts = Counter(order[:: len(ALL)])
    assert min(firsts.values()) > 70


@given(st.integers(0, 40), st.integers(1, 3), st.integers(2, 3))
def test_blocks_of_several_problems_are_large(num_items: int, num_columns: int, concurrency: int) -> None:
    attempts = plan_attempts([item(number) for number in range(num_items)], ALL[:num_columns], 1, concurrency)
    assert len({attempt.key for attempt in attempts}) == len(attempts) == num_items * num_columns
    blocks = [list(block) for _, block in itertools.groupby(attempts, key=lambda one: (one.block, one.route))]
    assert all(4 * concurrency <= len(block) < 8 * concurrency for block in blocks) or len(blocks) == num_columns
    for number in range(0, len(blocks), num_columns):
        turn = blocks[number : number + num_columns]
        assert {block[0].route for block in turn} == {*ALL[:num_columns]}
        assert all([one.item for one in block] == [one.item for one in turn[0]] for block in turn)


def test_answer_that_cannot_be_graded_is_an_error_row_and_tried_again() -> None:
    def failing(text: str, gold: Mapping[str, Any]) -> Grade:
        raise ProblemError("the answer cannot be graded: math-verify was killed (signal 9)")

    bench = scripted_bench(grade=failing)
    attempts = plan_attempts([item(0, "37 * 12 - 95", "349")], (TARGET,), 1)
    (row,) = rows(bench, attempts)
    assert (row["status"], row["grade"]) == ("error", None)
    assert "cannot be graded" in row["error"]
    assert row["steps"]
    assert left_of(attempts, [row]) == attempts


@pytest.mark.parametrize(
    ("error", "row"),
    [(ComputeError("llama.cpp failed"), ("p0", "error", "llama.cpp failed")), (InterruptedRunError("interrupted"), None)],
)
def test_what_ends_a_run(monkeypatch: pytest.MonkeyPatch, error: Exception, row: tuple[str, ...] | None) -> None:
    def fail(engine: Engine) -> None:
        raise error

    monkeypatch.setattr(Engine, "tick", fail)
    kept = Kept()
    with pytest.raises(type(error)):
        made(scripted_bench(), plan_attempts([item(0), item(1)], (TARGET,), 1), kept)
    assert [(one["id"], one["status"], one["error"]) for one in kept.rows] == ([row] if row else [])
    assert sum(isinstance(one, AttemptStarted) for one in kept.events) == 1


def test_samples_have_seeds_of_their_own() -> None:
    sampler = Sampler(temperature=0.8, seed=5)
    bench = hash_bench(sampler)
    both = {row["sample"]: row for row in rows(bench, plan_attempts([item()], (RANDOM,), 2))}
    assert len(bench.engines._made) == len(RANDOM.policy.models)  # shared by the samples
    (later,) = rows(hash_bench(Sampler(temperature=0.8, seed=6)), plan_attempts([item()], (RANDOM,), 1))
    assert both[1]["steps"] != both[0]["steps"]
    assert results([both[1] | {"sample": 0}]) == results([later])


def test_policies_learn_nothing_from_each_other() -> None:
    """Each policy has its own acceptance statistics. Only the speed of a model is shared."""
    backends: dict[ModelRole, Backend] = {
        "draft": Recording(HashBackend("draft")),
        "target": Recording(HashBackend("target")),
    }
    engines = writers(backends, unit_costs={"target": unit_costs(0.5)})
    first = engines(RANDOM)
    calls = [len(backend.calls) for backend in backends.values() if isinstance(backend, Recording)]
    second = engines(Route(RANDOM.policy, 0.4))
    assert engines(RANDOM) == first
    assert not {*first.values()} & {*second.values()}
    assert [len(backend.calls) for backend in backends.values() if isinstance(backend, Recording)] == calls
    estimates = []
    for engine in (first["target"], second["target"]):
        engine.open(0, item().problem)
        estimates.append(engine.seconds_alone(0, Trace(item().problem, SHORT)))
        engine.close(0)
    assert estimates == [estimates[0]] * 2 != [None] * 2


def test_time_is_that_between_events(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    ticks = slow_down(monkeypatch, clock, Engine)

    def slow_grade(text: str, gold: Mapping[str, Any]) -> Grade:
        clock.now += 1000.0
        return grade(text, gold)

    class Slow(Kept):
        def handle(self, event: object) -> None:
            clock.now += 100.0  # looking takes time

    bench = scripted_bench(clock=clock, grade=slow_grade)
    (row,) = made(bench, [Attempt(item(0, "1 + 3"), 0, TARGET)], Slow()).rows
    assert row["wall_seconds"] == len(ticks) > 0


def test_router_time_is_that_of_the_decision() -> None:
    clock = Clock()

    def slow_router(trace: Trace, draft: Step) -> float:
        clock.now += 3.0
        return 0.0

    policy = replace(POLICIES["random"], make_scorer=lambda seed: by_token_stats(slow_router))
    row = only_row(scripted_bench(clock=clock, timer=clock), column=Route(policy, 0.5))
    assert row["timing"]["router"] == {"seconds": 3.0 * len(row["steps"])}
    assert row["wall_seconds"] == 3.0 * len(row["steps"])
    assert row["timing"]["program"] == {"seconds": 0.0}


@pytest.mark.parametrize("is_counted", [False, True])
def test_a_comparison_takes_the_same_time_whether_or_not_the_timer_counts_it(*, is_counted: bool) -> None:
    """The processor time of the models' thread does not contain a comparison in another thread. The time of a clock does."""
    clock = Clock()

    def compare() -> bool:
        clock.now += 7.0
        return True

    class Comparing(Bench):
        def flow(self, attempt: Attempt, trace: Trace) -> Flow:
            yield from single(trace, "target")
            assert (yield CompareAnswers(compare)) is True

    backends: dict[ModelRole, Backend] = {"target": open_scripted("scripted:target", LoadOptions())}
    bench = Comparing(writers(backends, clock=clock), clock=clock, timer=clock if is_counted else lambda: 0.0)
    row = only_row(bench, column=TARGET)
    assert row["timing"]["program"] == {"seconds": 7.0}


def test_time_is_accounted_for_to_the_last_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of an attempt is that of its models, of the router and of the program, and no second counts twice."""
    clock = Clock()

    class Slow(HashBackend):
        def read(self, sequence: int, position: int, tokens: Sequence[int], *, deadline: Deadline | None = None) -> None:
            clock.now += 10.0 * len(tokens)
            super().read(sequence, position, tokens, deadline=deadline)

    def slow_router(trace: Trace, draft: Step) -> float:
        clock.now += 1000.0
        return draft.num_tokens % 2

    backends: dict[ModelRole, Backend] = {"draft": Slow("draft"), "target": Slow("target", merges=("ab",))}
    costs: dict[ModelRole, UnitCosts] = {"draft": unit_costs(0.1), "target": unit_costs(1.0)}
    bench = Bench(writers(backends, unit_costs=costs, clock=clock), clock=clock, timer=clock)
    policy = replace(POLICIES["random"], make_scorer=lambda seed: by_token_stats(slow_router))
    routes = [TARGET, DRAFT, Route(POLICIES["speculative"]), Route(policy, 0.5)]
    slow_down(monkeypatch, clock, Engine)
    found = [Result.of(made_up_runs.parsed(row)) for row in rows(bench, plan_attempts([item(0), item(1)], routes, 1))]
    assert len(found) == 8
    for result in found:
        parts = result.tally.seconds, result.router_seconds, result.program_seconds
        assert result.seconds == sum(parts)
        assert min(parts[0], parts[2]) > 0
    assert {result.route.name for result in found if result.router_seconds} == {"random@0.5"}
    assert all(result.tally.draft_cost.seconds > 0 for result in found if result.route != TARGET)


def test_attempt_that_takes_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    slow_down(monkeypatch, clock, Engine)
    attempts = plan_attempts([item(0, "37 * 12 - 95"), item(1, "1 + 3")], (TARGET,), 1)
    kept = made(scripted_bench(clock=clock), [replace(attempt, seconds=50.0) for attempt in attempts])
    kinds = [type(one) for one in kept.events]
    assert kinds[kinds.index(Attempt) + 1] is AttemptStarted  # nothing more is done for it
    late, solved = kept.rows
    assert (late["status"], late["error"]) == ("error", "not finished after 50 s")
    assert late["steps"]
    assert late["wall_seconds"] == 51.0
    assert (solved["status"], solved["grade"]["value"]) == ("done", "correct")


def progress_of(*attempts: tuple[int, Route, float, str]) -> RunCounts:
    progress = RunCounts("run", (TARGET, ENTROPY), 3)
    for number, route, seconds, verdict in attempts:
        row = made_up_runs.make_row(number, 0, (route.policy.name, route.tau)) | {"wall_seconds": seconds}
        ended = {"status": "error", "grade": None} if verdict == "error" else {"grade": {**row["grade"], "value": verdict}}
        progress.add(route, made_up_runs.parsed(row | ended))
    return progress


def test_progress_counts() -> None:
    """An attempt that is made again counts once."""
    attempts = [(0, TARGET, 9.0, "error"), (0, TARGET, 8.0, "correct"), (0, ENTROPY, 4.0, "correct")]
    now = progress_of(*attempts, (1, TARGET, 6.0, "incorrect"), (2, ENTROPY, 9.0, "error")).now()
    target, entropy = now.standings
    assert (target.tried, target.done, target.correct, target.seconds) == (2, 2, 1, 14.0)
    assert (entropy.tried, entropy.done, entropy.correct, entropy.seconds) == (2, 1, 1, 4.0)
    assert (entropy.planned, now.planned, now.finished) == (3, 6, 4)
