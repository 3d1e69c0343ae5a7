"""A benchmark: the order of attempts, what a row of one tells, what is timed, and how the policies stand."""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from faults import results
from hash_language import HashBackend, Recording, solve
from hypothesis import given, settings
from hypothesis import strategies as st
from writing import make_engine

from arbitrage_cli.arbitrage import Flow, ScoreSteps, WriteStep, by_least_likely_token, by_reward, by_token_stats
from arbitrage_cli.data.rows import Item
from arbitrage_cli.errors import ComputeError, ContextFullError, InterruptedRunError, ProblemError
from arbitrage_cli.evaluation.benchmark import Attempt, Began, Bench, Ended, PolicyAtTau, left, plan
from arbitrage_cli.evaluation.engines import Engines
from arbitrage_cli.inference.backend import Backend, Deadline, Options
from arbitrage_cli.inference.chat_template import INSTRUCTIONS
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.kv_cache import Cache
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import RewardUpdate, StepRewards
from arbitrage_cli.inference.scripted import open_scripted
from arbitrage_cli.inference.speculation import Planner, Speculator
from arbitrage_cli.rewards.rollouts import Rollout
from arbitrage_cli.routing.policies import POLICIES, Policy
from arbitrage_cli.types import Cost, Limits, ModelRole, Problem, Score, Started, Step, Trace

TARGET, DRAFT = PolicyAtTau(POLICIES["target"], None), PolicyAtTau(POLICIES["draft"], None)
ENTROPY, RANDOM = PolicyAtTau(POLICIES["entropy"], 2.0), PolicyAtTau(POLICIES["random"], 0.5)
ALL = (TARGET, DRAFT, ENTROPY, RANDOM)
SHORT = Limits(max_steps=6, max_tokens=120, max_step_tokens=40)


def item(number: int = 0, question: str | None = None, answer: str = "4") -> Item:
    return Item(Problem(f"p{number}", question or f"question {number}"), {"answer": answer}, level=number % 2)


def grade(text: str, gold: Mapping[str, Any]) -> Score:
    """Right if the gold answer stands in the text."""
    is_right = str(gold["answer"]) in text
    return Score("correct" if is_right else "incorrect", text[-5:] or None, "looked for it")


def hash_bench(sampler: Sampler | None = None, **options: Any) -> Bench:
    """A bench of two toy models; each solution depends on every token that is in a cache."""
    backends: dict[ModelRole, Backend] = {"draft": HashBackend("draft"), "target": HashBackend("target", merges=("ab",))}
    chosen = sampler or Sampler()
    return Bench(Engines(backends, chosen, INSTRUCTIONS), grade, SHORT, chosen.seed, **options)


def scripted_bench(limits: Limits = SHORT, context: int | None = None, **options: Any) -> Bench:
    """A bench of the two demo models."""
    load = Options(context)
    backends: dict[ModelRole, Backend] = {
        "draft": open_scripted("scripted:draft", load),
        "target": open_scripted("scripted:target", load),
    }
    return Bench(Engines(backends, Sampler(), INSTRUCTIONS), grade, limits, 0, **options)


def rows(bench: Bench, attempts: Iterable[Attempt]) -> list[dict[str, Any]]:
    return [happening.row for happening in bench.run(attempts) if isinstance(happening, Ended)]


def only_row(
    bench: Bench, question: str = "37 * 12 - 95", column: PolicyAtTau = ENTROPY, answer: str = "349"
) -> dict[str, Any]:
    (row,) = rows(bench, [Attempt(item(0, question, answer), 0, column)])
    return row


class Clock:
    """A clock that goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def slow_down(monkeypatch: pytest.MonkeyPatch, clock: Clock, kind: type[Engine | Rollout]) -> list[object]:
    """Have each tick of an engine, or of a rater, take a second of this clock; returns the list of those that ticked."""
    tick, ticked = kind.tick, list[object]()

    def slow_tick(worker: Any) -> Any:
        clock.now += 1.0
        ticked.append(worker)
        return tick(worker)

    monkeypatch.setattr(kind, "tick", slow_tick)
    return ticked


# --- the plan


@given(st.integers(1, 7), st.integers(1, 4), st.integers(1, 3))
def test_plan_has_everything_once_and_takes_turns(num_items: int, num_columns: int, samples: int) -> None:
    """Each problem is planned once with each policy and sample, problem by problem, and problem i begins with policy i."""
    items, columns = [item(number) for number in range(num_items)], ALL[:num_columns]
    attempts = plan(items, columns, samples)
    assert len({attempt.key for attempt in attempts}) == len(attempts) == num_items * num_columns * samples
    assert [attempt.item for attempt in attempts] == sorted(
        [attempt.item for attempt in attempts], key=lambda one: items.index(one)
    )
    for index in range(num_items):
        first = attempts[index * num_columns * samples]
        assert (first.item, first.policy_at_tau) == (items[index], columns[index % num_columns])


@given(st.integers(0, 40), st.integers(1, 3), st.integers(2, 3))
def test_blocks_of_a_throughput_run_are_large(num_items: int, num_columns: int, concurrency: int) -> None:
    """Each problem is in one block, a block has at least four problems for each that is solved at once, or there is but one."""
    attempts = plan([item(number) for number in range(num_items)], ALL[:num_columns], 1, concurrency)
    assert len({attempt.key for attempt in attempts}) == len(attempts) == num_items * num_columns
    blocks = [list(block) for _, block in itertools.groupby(attempts, key=lambda one: (one.block, one.policy_at_tau))]
    assert all(4 * concurrency <= len(block) < 8 * concurrency for block in blocks) or len(blocks) == num_columns
    for number in range(0, len(blocks), num_columns):
        turn = blocks[number : number + num_columns]
        assert turn[0][0].policy_at_tau == ALL[turn[0][0].block % num_columns]
        assert all([one.item for one in block] == [one.item for one in turn[0]] for block in turn)


def test_no_policy_is_always_first() -> None:
    """Over as many problems as there are policies, each of them has each place in the order once."""
    attempts = plan([item(number) for number in range(4)], ALL, 1)
    places = [[one.policy_at_tau for one in attempts[4 * number :][:4]].index(ENTROPY) for number in range(4)]
    assert sorted(places) == [0, 1, 2, 3]


def test_what_is_done_is_left_out_and_what_failed_comes_last() -> None:
    """A result is never made again, right or wrong; an error is, after everything that was not tried yet."""
    attempts = plan([item(0), item(1)], (TARGET, DRAFT), 1)
    made: list[Mapping[str, Any]] = [
        {"id": "p0", "sample": 0, "policy": "target", "tau": None, "status": "error"},
        {"id": "p0", "sample": 0, "policy": "draft", "tau": None, "status": "done", "score": {"value": "incorrect"}},
    ]
    keys = [one.key[::2] for one in left(attempts, made, retry_errors=True)]
    assert keys == [("p1", "draft"), ("p1", "target"), ("p0", "target")]
    assert [one.key[0] for one in left(attempts, made, retry_errors=False)] == ["p1", "p1"]
    later = [*made, {"id": "p0", "sample": 0, "policy": "target", "tau": None, "status": "done"}]
    assert [one.key[0] for one in left(attempts, later, retry_errors=True)] == ["p1", "p1"]


def test_taus_tell_rows_apart() -> None:
    """Two taus of one policy are two columns; an infinite one has its name in JSON."""
    columns = [PolicyAtTau(POLICIES["entropy"], tau) for tau in (0.5, math.inf)]
    assert [one.key[3] for one in plan([item()], columns, 1)] == [0.5, "inf"]
    assert [column.label for column in columns] == ["entropy 0.5", "entropy inf"]
    assert PolicyAtTau(POLICIES["arbitrage"], 0.3471, "fast").label == "arbitrage fast (0.347)"


# --- what a row tells


def test_row_of_a_routed_attempt() -> None:
    """The row has the solution, its grade, what it was compared with, and where the time went; nothing that all rows share."""
    row = only_row(scripted_bench(), column=PolicyAtTau(POLICIES["entropy"], 0.3))
    assert row["status"] == "done"
    assert (row["id"], row["sample"], row["policy"], row["tau"], row["level"]) == ("p0", 0, "entropy", 0.3, 0)
    assert row["score"] == {"value": "correct", "answer": row["text"][-5:], "explanation": "looked for it"}
    assert (row["gold"], row["error"], row["stop"], row["schema"]) == ({"answer": "349"}, None, "end", 1)
    assert [step["decision"] for step in row["steps"]] == ["escalate", "accept", "accept"]
    assert row["steps"][0]["discarded"]["model"] == "draft"
    assert row["timing"]["draft"]["decode_tokens"] > 0
    assert row["timing"]["target"]["decode_tokens"] + row["timing"]["target"]["verify_kept"] > 0
    assert not row.keys() & {"settings", "models", "draft", "target", "temperature", "seed", "probability_is", "checksum"}


def test_one_model_alone_has_no_router_time() -> None:
    """Where nothing is routed there is no tau and no time of a router."""
    row = only_row(scripted_bench(), column=DRAFT)
    assert (row["policy"], row["tau"]) == ("draft", None)
    assert "router" not in row["timing"]
    assert row["score"]["value"] == "incorrect"


def test_problem_that_cannot_be_solved_is_an_error_row() -> None:
    """A problem that the models have nothing to say to is an error, in one line and ungraded, and the next one is solved."""
    attempts = plan([item(0, "who?\nwhat?"), item(1, "1 + 3")], (TARGET,), 1)
    failed, solved = rows(scripted_bench(), attempts)
    assert (failed["status"], failed["score"], failed["steps"]) == ("error", None, [])
    assert "one line of arithmetic" in failed["error"]
    assert (solved["status"], solved["score"]["value"]) == ("done", "correct")


def test_answer_that_cannot_be_graded_is_an_error_row_and_tried_again() -> None:
    """A grader that fails says nothing about the answer: the attempt keeps its steps, has no score, and a resume makes it again."""

    def failing(text: str, gold: Mapping[str, Any]) -> Score:
        raise ProblemError("the answer cannot be graded: math-verify was killed (signal 9)")

    bench = scripted_bench()
    bench.grade = failing
    attempts = plan([item(0, "37 * 12 - 95", "349")], (TARGET,), 1)
    (row,) = rows(bench, attempts)
    assert (row["status"], row["score"]) == ("error", None)
    assert "cannot be graded" in row["error"]
    assert row["steps"]
    assert left(attempts, [row], retry_errors=True) == attempts


def test_full_context_is_a_result_unless_nothing_was_written() -> None:
    """A solution that fills the context met a limit of the run: it is graded. A prompt that does not fit is an error."""
    cut = only_row(scripted_bench(context=100), column=TARGET)
    assert (cut["status"], cut["stop"], cut["error"], cut["score"]["value"]) == ("done", "context", None, "incorrect")
    assert cut["steps"]
    too_long = only_row(scripted_bench(context=64), column=TARGET)
    assert (too_long["status"], too_long["score"]) == ("error", None)


def test_context_that_is_full_for_the_other_model_is_a_result_too() -> None:
    """If the target cannot read what the draft wrote any more, the attempt ends there, and its text is graded."""

    class Refusing(Engine):
        def start(self, slot: int, request: WriteStep, speculator: Speculator | None = None) -> int:
            if request.trace.decisions:
                raise ContextFullError("no room")
            return super().start(slot, request, speculator)

    engines: dict[ModelRole, Engine] = {
        "target": Refusing("target", Cache(open_scripted("scripted:target", Options())), Sampler())
    }
    row = only_row(Bench(lambda policy, sample: engines, grade, SHORT, 0), column=TARGET)
    assert (row["status"], row["stop"], row["error"]) == ("done", "context", None)
    assert len(row["steps"]) == 1


def test_rewards_and_their_cost_are_in_the_row() -> None:
    """A policy that asks for rewards gets them from its rater, and what they cost stands in the row."""

    class Rater:
        waits_for_many = True

        def __init__(self) -> None:
            self._wishes: dict[int, ScoreSteps] = {}

        @property
        def busy(self) -> bool:
            return bool(self._wishes)

        def open(self, slot: int, problem: Problem, deadline: Deadline | None = None) -> None:
            """Nothing to prepare."""

        def close(self, slot: int) -> None:
            """Nothing to forget."""

        def start(self, slot: int, request: ScoreSteps) -> None:
            self._wishes[slot] = request

        def tick(self) -> list[RewardUpdate]:
            rewards = {slot: (0.25,) * len(request.steps) for slot, request in self._wishes.items()}
            rated = [RewardUpdate(slot, StepRewards(values, Cost(7, 0.5))) for slot, values in rewards.items()]
            self._wishes.clear()
            return rated

    policy = Policy("rated", ("draft", "target"), "badness", 0.5, lambda seed: by_reward())
    row = only_row(scripted_bench(rater_for=lambda policy: Rater()), column=PolicyAtTau(policy, 0.5))
    assert {step["probability"] for step in row["steps"]} == {0.75}
    assert row["timing"]["reward"]["seconds"] == 0.5 * len(row["steps"])


def test_router_may_come_from_outside() -> None:
    """A policy with a head routes with the router that it is given."""
    bench = scripted_bench(router_for=lambda policy: by_token_stats(lambda trace, draft: 0.9))
    row = only_row(bench, column=PolicyAtTau(POLICIES["arbitrage"], 0.5))
    assert {step["decision"] for step in row["steps"]} == {"escalate"}


# --- what ends a run


class Broken(Engine):
    """Fails at its first token."""

    error: Exception = ComputeError("llama.cpp failed")

    def tick(self) -> Any:
        raise self.error


def broken_bench(error: Exception) -> Bench:
    backend = open_scripted("scripted:target", Options())
    engine = type("BrokenNow", (Broken,), {"error": error})("target", Cache(backend), Sampler())
    return Bench(lambda policy, sample: {"target": engine}, grade, SHORT, 0)


def test_failed_computation_ends_the_run_after_its_row() -> None:
    """What costs the model its state ends the run: the attempt has an error row, the next is not begun."""
    seen: list[object] = []
    with pytest.raises(ComputeError):
        seen.extend(broken_bench(ComputeError("llama.cpp failed")).run(plan([item(0), item(1)], (TARGET,), 1)))
    (ended,) = (one for one in seen if isinstance(one, Ended))
    assert (ended.row["id"], ended.row["status"], ended.row["error"]) == ("p0", "error", "llama.cpp failed")
    assert sum(isinstance(one, Began) for one in seen) == 1


def test_interruption_is_no_row() -> None:
    """An attempt that the user broke off has no row: it is made again."""
    seen: list[object] = []
    with pytest.raises(InterruptedRunError):
        seen.extend(broken_bench(InterruptedRunError("interrupted")).run([Attempt(item(), 0, TARGET)]))
    assert not any(isinstance(one, Ended) for one in seen)


# --- results depend on nothing but the problem


WARM = Sampler(temperature=0.8, seed=3)
ATTEMPTS = plan([item(number) for number in range(3)], (TARGET, ENTROPY, RANDOM), 2)


@pytest.fixture(scope="module")
def golden() -> Mapping[tuple[Any, ...], Any]:
    """The results of all attempts in the planned order."""
    return results(rows(hash_bench(WARM), ATTEMPTS))


@settings(max_examples=5, deadline=None)
@given(st.permutations(ATTEMPTS), st.integers(0, 20 * len(ATTEMPTS)))
def test_result_depends_on_no_order_and_no_interruption(
    golden: Mapping[tuple[Any, ...], Any], order: list[Attempt], stop: int
) -> None:
    """In any order, broken off anywhere and gone on with in a new process, and one by one: every row is the same."""
    begun = hash_bench(WARM).run(order)
    first = [one.row for one in itertools.islice(begun, stop) if isinstance(one, Ended)]
    begun.close()
    second = rows(hash_bench(WARM), left(order, first, retry_errors=True))
    assert results([*first, *second]) == golden
    (alone,) = rows(hash_bench(WARM), order[:1])
    assert results([alone]).items() <= golden.items()


def test_samples_have_seeds_of_their_own() -> None:
    """Sample k is what sample 0 is with the seed + k, for the models and for a policy that draws."""
    sampler = Sampler(temperature=0.8, seed=5)
    both = {row["sample"]: row for row in rows(hash_bench(sampler), plan([item()], (RANDOM,), 2))}
    (later,) = rows(hash_bench(Sampler(temperature=0.8, seed=6)), plan([item()], (RANDOM,), 1))
    assert both[1]["steps"] != both[0]["steps"]
    assert results([both[1] | {"sample": 0}]) == results([later])


def test_bench_solves_as_solve_does() -> None:
    """An attempt gives the text that solving the problem gives."""
    engines = Engines(
        {"draft": HashBackend("draft"), "target": HashBackend("target", merges=("ab",))}, Sampler(), INSTRUCTIONS
    )
    for column in ALL:
        (row,) = rows(hash_bench(), [Attempt(item(), 0, column)])
        solved = solve(engines(column, 0), [item().problem], column.policy.name, column.tau)
        assert row["text"] == solved["p0"].text


def test_policies_learn_nothing_from_each_other() -> None:
    """What an engine has learned of proposals is of its own column; only the speed of a model is measured for all."""
    backends: dict[ModelRole, Backend] = {
        "draft": Recording(HashBackend("draft")),
        "target": Recording(HashBackend("target")),
    }
    engines = Engines(backends, Sampler(), INSTRUCTIONS)
    first = engines(RANDOM, 0)
    calls = [len(backend.calls) for backend in backends.values() if isinstance(backend, Recording)]
    second = engines(PolicyAtTau(RANDOM.policy, 0.4), 0)
    assert engines(RANDOM, 0) == first
    assert not {*first.values()} & {*second.values()}
    assert [len(backend.calls) for backend in backends.values() if isinstance(backend, Recording)] == calls
    assert second["target"].seconds_per_token == first["target"].seconds_per_token > 0


# --- several at once


def shared_bench(concurrency: int, **options: Any) -> Bench:
    backends: dict[ModelRole, Backend] = {
        "draft": HashBackend("draft", num_sequences=concurrency),
        "target": HashBackend("target", merges=("ab",), num_sequences=concurrency),
    }
    engines = Engines(backends, Sampler(), INSTRUCTIONS)
    return Bench(engines, grade, SHORT, 0, concurrency=concurrency, **options)


def test_several_at_once_give_the_same_rows() -> None:
    """What an attempt gives does not depend on how many are made at once, nor on which are left of a block."""
    items = [item(number) for number in range(9)]
    alone = results(rows(shared_bench(1), plan(items, (TARGET, RANDOM), 1)))
    attempts = plan(items, (TARGET, RANDOM), 1, 3)
    together = rows(shared_bench(3), attempts)
    assert results(together) == alone
    rest = rows(shared_bench(3), left(attempts, together[:5], retry_errors=True))
    assert results([*together[:5], *rest]) == alone


def test_shares_add_up_to_the_time_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of a throughput run tells its block, with how many it was solved, and what it added to the block's time."""
    clock = Clock()
    ticks = slow_down(monkeypatch, clock, Engine)
    made = rows(shared_bench(2, clock=clock), plan([item(number) for number in range(16)], (TARGET,), 1, 2))
    assert [(row["throughput"]["block"], row["throughput"]["of"]) for row in made] == [(0, 8)] * 8 + [(1, 8)] * 8
    assert sum(row["throughput"]["seconds"] for row in made) == len(ticks)
    assert sum(row["wall_seconds"] for row in made) > len(ticks)
    assert "throughput" not in only_row(scripted_bench(), column=TARGET)


def test_one_that_takes_too_long_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """With several at once --timeout ends those that are late, and nothing else."""
    clock = Clock()
    slow_down(monkeypatch, clock, Engine)
    load = Options(num_sequences=2)
    backends: dict[ModelRole, Backend] = {"target": open_scripted("scripted:target", load)}
    bench = Bench(Engines(backends, Sampler(), INSTRUCTIONS), grade, SHORT, 0, 50.0, concurrency=2, clock=clock)
    made = rows(bench, plan([item(0, "37 * 12 - 95"), item(1, "1 + 3"), item(2, "who?"), item(3, "2 + 2")], (TARGET,), 1, 2))
    told = {row["id"]: row["error"] or row["score"]["value"] for row in made}
    assert told["p0"] == "not finished after 50 s"
    assert "one line of arithmetic" in told["p2"]
    assert (told["p1"], told["p3"]) == ("correct", "correct")


# --- what is timed


def test_time_is_that_between_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall time is what goes by while the models work: not while events are shown, an answer is graded, a row written."""
    clock = Clock()
    ticks = slow_down(monkeypatch, clock, Engine)

    def slow_grade(text: str, gold: Mapping[str, Any]) -> Score:
        clock.now += 1000.0
        return grade(text, gold)

    bench = scripted_bench(clock=clock)
    bench.grade = slow_grade
    seen: list[object] = []
    for happening in bench.run([Attempt(item(0, "1 + 3"), 0, TARGET)]):
        clock.now += 100.0  # whoever looks takes time
        seen.append(happening)
    (ended,) = (one for one in seen if isinstance(one, Ended))
    assert ended.row["wall_seconds"] == len(ticks) > 0


def test_router_time_is_that_of_the_decision() -> None:
    """A router's time is counted, and is part of the wall time; that of the models is not counted for it."""
    clock = Clock()

    def slow_router(trace: Trace, draft: Step) -> float:
        clock.now += 3.0
        return 0.0

    policy = Policy("slow", ("draft", "target"), "nothing", 0.5, lambda seed: by_token_stats(slow_router))
    row = only_row(scripted_bench(clock=clock), column=PolicyAtTau(policy, 0.5))
    assert row["timing"]["router"] == {"seconds": 3.0 * len(row["steps"])}
    assert row["wall_seconds"] == 3.0 * len(row["steps"])


def test_looks_at_unfinished_steps_are_the_routers_time() -> None:
    """They are no time of the draft, and a step that is stopped stands in its row as such."""
    clock = Clock()

    def slow_look(trace: Trace, beginning: Step) -> float:
        clock.now += 3.0
        return float(beginning.num_tokens >= 4)

    policy = Policy("slow", ("draft", "target"), "nothing", 0.5, lambda seed: by_least_likely_token(slow_look))
    row = only_row(scripted_bench(clock=clock, stops_early=True), column=PolicyAtTau(policy, 0.5))
    discarded = [step["discarded"] for step in row["steps"] if step["discarded"]]
    assert {(step["tokens"], step["stop"]) for step in discarded} == {(4, "early")}
    assert row["timing"]["router"] == {"seconds": 3.0 * 5 * len(discarded)}  # after each of four tokens, and by the flow
    assert row["wall_seconds"] == row["timing"]["router"]["seconds"]


def test_the_draft_is_asked_how_steps_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it decodes for that stands in the row, and the text is the same as without."""
    column = PolicyAtTau(POLICIES["random"], 0.3)
    usual = only_row(scripted_bench(stops_early=True), column=column)
    monkeypatch.setattr(Planner, "plan_speculation", lambda planner, seconds, room: min(room, 5))
    row = only_row(scripted_bench(stops_early=True), column=column)
    assert row["text"] == usual["text"]
    drafted = sum(step["tokens"] for step in (one["discarded"] or one for one in row["steps"]) if step["model"] == "draft")
    assert row["timing"]["draft"]["decode_tokens"] > drafted


def test_steps_are_stopped_on_request_only() -> None:
    """By a bench that stops early and by no other; what is kept is the same."""
    stopped, whole = (
        only_row(scripted_bench(stops_early=early), column=PolicyAtTau(POLICIES["random"], 0.3)) for early in (True, False)
    )
    assert [step["text"] for step in stopped["steps"]] == [step["text"] for step in whole["steps"]]
    stops = [{step["discarded"]["stop"] for step in row["steps"] if step["discarded"]} for row in (stopped, whole)]
    assert (stops[0], "early" in stops[1]) == ({"early"}, False)


def test_flow_is_closed_with_its_attempt() -> None:
    """A policy's flow ends with its attempt, also one that is broken off."""
    closed: list[bool] = []

    class Watched(Policy):
        def flow(self, *arguments: Any, **named: Any) -> Flow:
            try:
                yield from POLICIES["target"].flow(*arguments)
            finally:
                closed.append(True)

    happenings = scripted_bench().run([Attempt(item(0, "1 + 3"), 0, PolicyAtTau(Watched("target", ("target",)), None))])
    next(one for one in happenings if isinstance(one, Started))
    next(happenings)
    happenings.close()
    assert closed == [True]


def test_attempt_that_takes_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """After --timeout an attempt is broken off as an error that keeps its steps, and the next one is made."""
    clock = Clock()
    slow_down(monkeypatch, clock, Engine)
    attempts = plan([item(0, "37 * 12 - 95"), item(1, "1 + 3")], (TARGET,), 1)
    happenings = list(scripted_bench(clock=clock, timeout=50.0).run(attempts))
    kinds = [type(one) for one in happenings]
    assert kinds[kinds.index(Ended) + 1] is Began  # nothing more is done for it
    late, solved = (one.row for one in happenings if isinstance(one, Ended))
    assert (late["status"], late["error"]) == ("error", "not finished after 50 s")
    assert late["steps"]
    assert late["wall_seconds"] == 51.0
    assert (solved["status"], solved["score"]["value"]) == ("done", "correct")


def test_attempt_that_takes_too_long_while_it_is_rated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollout may take longer than all steps: the attempt does not wait for its end."""
    clock = Clock()
    slow_down(monkeypatch, clock, Rollout)
    ends = make_engine("target", open_scripted("scripted:target", Options()), Sampler())
    rater = Rollout([ends], lambda identifier, text: True)
    bench = scripted_bench(clock=clock, timeout=10.0, rater_for=lambda policy: rater)
    late = only_row(bench, column=PolicyAtTau(POLICIES["oracle"], 0.0))
    assert (late["status"], late["error"]) == ("error", "not finished after 10 s")
    assert late["wall_seconds"] == 11.0
