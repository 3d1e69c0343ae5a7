"""The program as a library: `open_pair`, on the scripted models and on the built-in pair."""

import copy
import json
import os
import pickle
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli import TIMEOUT, run
from made_up_tuning import make_tuned
from scripted_models import ScriptedBackend

import arbitrage_cli
from arbitrage_cli import (
    ArbitrageError,
    ComputeError,
    Decision,
    ModelFileError,
    Pair,
    Problem,
    ProblemError,
    Question,
    Solution,
    Token,
    UsageError,
    open_pair,
)
from arbitrage_cli.app.calls.call import python_errors
from arbitrage_cli.costs.store import keep_tuned, machine_here, tuned_file
from arbitrage_cli.inference.sparing_clock import MAX_AGE
from arbitrage_cli.model_files.checksums import sha256_of
from arbitrage_cli.model_files.pairs import find_files

QUESTION, ANSWER = "37 * 12 - 95", "349"
GUIDE = Path(__file__).parents[1] / "arbitrage_cli" / "guides" / "python.md"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A settings folder of its own, for tests that store advice."""
    shutil.copytree(os.environ["XDG_CONFIG_HOME"], tmp_path / "settings")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    return tmp_path


def scripted(**options: Any) -> Pair:
    return open_pair(pair="scripted", **options)


def test_a_solution_is_that_of_the_command_line() -> None:
    record = run("solve", QUESTION, "--pair", "scripted", "--json", "-q").record
    with scripted() as pair:
        solution = pair.solve(QUESTION)
    assert (solution.answer, solution.text, solution.stop) == (record["answer"], record["text"], record["stop"])
    steps = [(one.kept.model, one.kept.text, one.choice, one.score) for one in solution.steps]
    assert steps == [(one["model"], one["text"], one["decision"], one["score"]) for one in record["steps"]]
    made = json.loads(json.dumps(solution.to_dict()))
    timed = {"seconds", "steps", "timing", "target_alone_seconds_estimate"}
    assert {name: made[name] for name in made.keys() - timed} == {name: record[name] for name in record.keys() - timed}


def test_usage_counts_the_work_of_each_model() -> None:
    with scripted() as pair:
        solution = pair.solve(QUESTION)
    choices = [step.choice for step in solution.steps]
    usage = solution.usage
    assert (usage.accepted_steps, usage.escalated_steps) == (choices.count("accept"), choices.count("escalate"))
    drafted = sum(step.draft.num_tokens for step in solution.steps if step.draft)
    assert usage.draft.decode_tokens + usage.draft.verify_kept == drafted > 0
    assert usage.target.prefill_tokens > 0
    assert solution.seconds == pytest.approx(usage.draft.seconds + usage.target.seconds)
    assert "\n" not in repr(solution)
    assert ANSWER in repr(solution)
    assert len(str(usage)) < 100


@pytest.mark.parametrize("threads", [1, 2])
def test_both_models_are_timed_by_one_clock(threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is the CPU time of a thread only if both models have one thread."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for role, count in (("draft", 1), ("target", threads)):
        (path,) = find_files(f"builtin:{role}")
        keep_tuned(tuned_file(), [make_tuned(machine_here(), sha256_of([path]), count)])
    monkeypatch.setattr(time, "thread_time", lambda: 0.0)
    with open_pair(policy="random", tau=-1.0) as pair:
        usage = pair.solve("5 + 6", max_tokens=64).usage
    assert [usage.draft.decode_tokens > 0, usage.target.decode_tokens > 0] == [True, True]
    assert [usage.draft.seconds <= MAX_AGE, usage.target.seconds <= MAX_AGE] == [threads == 1] * 2


def test_a_call_overrides_what_the_pair_has() -> None:
    with scripted(policy="draft", max_tokens=3) as pair, scripted() as usual:
        assert pair.solve(QUESTION).stop == "max_tokens"
        whole = pair.solve(QUESTION, max_tokens=100)
        assert {step.kept.model for step in whole.steps} == {"draft"}
        assert {step.kept.model for step in pair.solve(QUESTION, policy="target").steps} == {"target"}
        assert pair.solve(QUESTION, max_tokens=100).text == whole.text  # nothing of a call stays
        assert usual.solve(QUESTION, tau=float("inf")).text == whole.text
        assert usual.solve(QUESTION, tau="0.5").to_dict()["tau"] == 0.5
        assert pair.solve(QUESTION, policy="entropy", temperature=0.5, seed=3).to_dict()["settings"]["seed"] == 3


def test_the_pairs_tau_is_for_the_pairs_policy() -> None:
    with scripted(policy="entropy", tau=0.25) as pair:
        taus = [pair.solve(QUESTION, **options).to_dict()["tau"] for options in ({}, {"policy": "logprob"}, {"tau": 2})]
    assert taus == [0.25, 0.3, 2.0]


def test_thinking_is_asked_for_with_a_switch_or_a_number() -> None:
    with open_pair(pair="builtin-thinking", threads=1, ctx=512) as pair:
        limits = [
            pair.solve("What is 5 + 6?", max_tokens=20, **options).to_dict()["settings"]["think_tokens"]
            for options in ({}, {"think": True}, {"think": 8})
        ]
        assert limits == [None, None, 8]
        thought = pair.solve("What is 5 + 6?", think=8)
        with pytest.raises(UsageError, match="without thinking"):
            pair.solve("What is 5 + 6?", think=False)
    assert thought.thinking
    assert [step.kept.phase for step in thought.steps][:1] == ["think"]


def test_a_call_does_not_turn_thinking_on_for_models_that_cannot_think() -> None:
    """The error names the pair that thinks, as `open_pair(think=True)` would choose it."""
    with open_pair(threads=1, ctx=512) as pair:
        with pytest.raises(UsageError, match="cannot think") as caught:
            pair.solve("What is 5 + 6?", think=True)
        assert (caught.value.option, "builtin-thinking" in caught.value.hint) == ("think", True)
        assert pair.solve("What is 5 + 6?", think=False, max_tokens=20).to_dict()["settings"]["think_tokens"] == 0


def test_a_stream_has_tokens_decisions_and_the_solution() -> None:
    with scripted() as pair:
        events = list(pair.stream(QUESTION))
        solution = pair.solve(QUESTION)
    assert isinstance(events[-1], Solution)
    decisions = [event for event in events if isinstance(event, Decision)]
    assert [one.kept.text for one in decisions] == [one.kept.text for one in solution.steps]
    drafted = "".join(event.text for event in events if isinstance(event, Token) and event.model == "draft")
    assert drafted == "".join(one.draft.text for one in decisions if one.draft)
    with scripted() as pair:
        with pytest.raises(ProblemError):
            list(pair.stream("who?"))
        with pytest.raises(ProblemError):
            pair.solve("who?")
        assert pair.solve(QUESTION).answer == ANSWER


def test_many_problems_come_in_their_order_and_an_error_is_one_of_them() -> None:
    questions: list[Any] = ["1 + 1", "who?", Problem("mine", QUESTION), " ", None, [{"role": "user", "content": "2 * 3"}]]
    with scripted(concurrency=3) as pair:
        solutions = list(pair.solve_many(iter(questions)))
        alone = [pair.solve(questions[place]).text for place in (0, 2, 5)]
    assert [one.problem.id for one in solutions] == ["1", "2", "mine", "4", "5", "6"]
    assert [one.text for one in solutions if one.error is None] == alone
    kinds = [ProblemError, UsageError, UsageError]
    assert [isinstance(one.error, kind) for one, kind in zip([solutions[place] for place in (1, 3, 4)], kinds, strict=True)]
    assert all(json.dumps(one.to_dict()) for one in solutions)


def test_each_of_many_solutions_comes_once_and_in_order() -> None:
    """The address of a freed trace is reused while the first and slowest problem is still in flight."""
    questions = ["1" + "+1" * 30, *(f"{number} + 1" for number in range(59))]
    with scripted(policy="draft", concurrency=3) as pair:
        for _ in range(6):  # solutions kept by the traces' addresses fail in 60% of the repetitions
            assert [one.problem.id for one in pair.solve_many(questions)] == [str(number) for number in range(1, 61)]


def test_messages_are_a_question() -> None:
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": QUESTION},
    ]
    with scripted() as pair:
        solution = pair.solve(said)
    assert (solution.answer, solution.problem.question, len(solution.problem.turns)) == (ANSWER, QUESTION, 2)
    assert solution.to_dict()["settings"]["system"] == "Be brief."


def test_a_conversation_remembers_what_was_said() -> None:
    with scripted() as pair:
        chat = pair.conversation(system="Be brief.")
        first, second = chat.ask("1 + 1"), chat.ask(QUESTION)
        with pytest.raises(ProblemError):
            chat.ask("who?")
        third = chat.ask("2 * 3")
        chat.clear()
        assert chat.ask(QUESTION).problem.turns == ()
    assert (first.answer, second.answer, third.answer) == ("2", ANSWER, "6")
    assert [one.text for one in third.problem.turns] == ["1 + 1", first.text, QUESTION, second.text]
    assert third.problem.system == "Be brief."


def test_a_conversation_has_no_final_answers_to_compare() -> None:
    with scripted(check="scripted:draft") as pair:
        assert pair.solve(QUESTION, policy="agree").answer
        with pytest.raises(UsageError) as refused:
            pair.conversation(policy="agree")
    assert refused.value.option == "policy"


def test_one_call_at_a_time_and_a_stream_that_is_left_makes_room() -> None:
    with scripted() as pair:
        events = pair.stream(QUESTION)
        next(events)
        with pytest.raises(UsageError):
            pair.solve(QUESTION)
        events.close()
        assert pair.solve(QUESTION).answer == ANSWER
    with pytest.raises(UsageError):
        pair.solve(QUESTION)
    pair.close()


def test_closing_a_pair_ends_its_stream() -> None:
    """The models are freed after the stream has released them, because llama.cpp would otherwise abort."""
    for pair in (scripted(), open_pair(threads=1, ctx=512)):
        events = pair.stream(QUESTION)
        next(events)
        pair.close()
        with pytest.raises(UsageError, match="closed"):
            next(events)


def test_a_pair_that_is_dropped_is_closed_with_a_warning() -> None:
    """Although a conversation and a half-read stream of it existed."""
    pairs = [scripted()]
    pairs[0].conversation().ask(QUESTION)
    next(pairs[0].stream(QUESTION))
    with pytest.warns(ResourceWarning, match="unclosed"):
        pairs.clear()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_pair_is_not_copied(copied: Callable[[Pair], object]) -> None:
    with scripted() as pair:
        with pytest.raises(TypeError, match="cannot be copied"):
            copied(pair)
        assert pair.solve(QUESTION).answer == ANSWER


def test_numbers_of_numpy_are_numbers() -> None:
    options: Any = {"tau": np.float32(0.5), "seed": np.int64(3), "temperature": np.float64(0.5), "max_tokens": np.int32(9)}
    with scripted(threads=np.int64(1)) as pair:
        solution = pair.solve(QUESTION, **options)
    record = solution.to_dict()
    used = [record["settings"][name] for name in ("seed", "temperature", "max_tokens")]
    assert (record["tau"], used) == (0.5, [3, 0.5, 9])


def test_a_pair_is_not_closed_while_another_thread_solves() -> None:
    with scripted() as pair:
        asked, answered = threading.Event(), threading.Event()

        def questions() -> Iterator[str]:
            asked.set()
            answered.wait(TIMEOUT)
            yield QUESTION

        with ThreadPoolExecutor(1) as pool:
            solved = pool.submit(lambda: list(pair.solve_many(questions())))
            asked.wait(TIMEOUT)
            try:
                with pytest.raises(UsageError, match="another thread"):
                    pair.close()
            finally:
                answered.set()
            assert [one.answer for one in solved.result()] == [ANSWER]
        assert pair.solve(QUESTION).answer == ANSWER


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"policy": "best"}, "policy"), ({"policy": 3}, "policy"), ({"policy": "target", "tau": 1}, "tau"),
        ({"tau": True}, "tau"), ({"think": -1}, "think"), ({"think": "on"}, "think"), ({"temperature": "hot"}, "temperature"),
        ({"top_p": float("nan")}, "top_p"), ({"max_tokens": 0}, "max_tokens"), ({"system": 5}, "system"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_option_is_named_when_a_pair_is_opened_and_in_a_call(options: dict[str, Any], option: str) -> None:
    with pytest.raises(UsageError) as raised:
        scripted(**options)
    assert raised.value.option == option
    with scripted() as pair:
        calls: list[Callable[..., object]] = [pair.solve, pair.stream, pair.conversation, pair.solve_many]
        for call in calls:
            with pytest.raises(UsageError) as raised:
                call(*([] if call == pair.conversation else [[QUESTION]]), **options)
            assert raised.value.option == option


@pytest.mark.parametrize(
    ("options", "error", "option"),
    [
        ({"pair": "nobody"}, UsageError, "pair"),
        ({"draft": 5}, UsageError, "draft"),
        ({"draft": Path("x.gguf"), "target": "y.gguf"}, ModelFileError, None),
        ({"ctx": 1}, UsageError, "ctx"),
        ({"threads": 1.5}, UsageError, "threads"),
        ({"concurrency": 0}, UsageError, "concurrency"),
        ({"concurrency": True}, UsageError, "concurrency"),
        ({"concurrency": 10**6}, UsageError, "concurrency"),
        ({"task": "juggling"}, UsageError, "task"),
        ({"pair": ""}, UsageError, "pair"),
        ({"prm": "x" * 300}, ModelFileError, None),
    ],
    ids=str,
)
def test_a_wrong_argument_of_what_is_loaded_is_named(
    options: dict[str, Any], error: type[ArbitrageError], option: str
) -> None:
    with pytest.raises(error) as raised:
        open_pair(**options)
    assert getattr(raised.value, "option", None) == option
    assert "--" not in raised.value.hint


def test_hints_name_arguments_and_keep_commands() -> None:
    with open_pair(ctx=64) as pair:
        (failed,) = pair.solve_many([f"{QUESTION} {'1 + ' * 60}"])
    assert failed.error
    assert ("ctx" in failed.error.hint, "--" in failed.error.hint) == (True, False)
    with pytest.raises(ArbitrageError) as raised, python_errors():
        raise ArbitrageError("no", "pip install --no-cache-dir llama-cpp-python, or use --gpu-layers 0")
    assert raised.value.hint == "pip install --no-cache-dir llama-cpp-python, or use gpu_layers 0"


def test_hints_of_errors_that_end_all_problems_name_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ComputeError("out of memory", "use a smaller --ctx")

    monkeypatch.setattr(ScriptedBackend, "decode", fail)
    with scripted() as pair:
        for solve in (lambda: pair.solve(QUESTION), lambda: list(pair.solve_many([QUESTION]))):
            with pytest.raises(ComputeError) as raised:
                solve()
            assert raised.value.hint == "use a smaller ctx"


@pytest.mark.parametrize(
    ("method", "asked"),
    [
        *(("solve", question) for question in (None, " ", [{"role": "me"}], 5, Problem("1", 5))),  # type: ignore[arg-type]
        *(("solve_many", one) for one in (QUESTION, Problem("1", QUESTION), {"role": "user", "content": QUESTION}, None)),
    ],
    ids=str,
)
def test_what_is_no_question_or_not_many_is_refused(method: str, asked: Any) -> None:
    with scripted() as pair, pytest.raises(UsageError) as raised:
        getattr(pair, method)(asked)
    assert raised.value.option == ("question" if method == "solve" else "questions")


def test_a_policy_that_needs_what_is_not_loaded_is_refused() -> None:
    with scripted() as pair, open_pair(target="scripted:target", policy="target") as alone:
        for policy in ("rsd", "oracle", "arbitrage"):
            with pytest.raises(UsageError):
                pair.solve(QUESTION, policy=policy)
        assert alone.solve(QUESTION).answer == ANSWER
        with pytest.raises(UsageError):
            alone.solve(QUESTION, policy="entropy")
        with pytest.raises(TypeError, match="polcy"):
            pair.solve(QUESTION, polcy="target")  # type: ignore[call-arg]


def test_models_that_rate_steps_are_loaded_when_they_are_named() -> None:
    question = "What is 5 + 6?"
    with open_pair(threads=1, ctx=512, prm="builtin:prm") as pair:
        assert pair.solve(question, policy="target").usage.reward.seconds == 0
        assert pair.solve(question, policy="rsd").usage.reward.seconds > 0


def test_two_pairs_of_real_models_are_open_at_once() -> None:
    questions: list[Question] = ["What is 5 + 6?", "What is 12 * 3?"]
    with (
        open_pair(threads=1, ctx=512, tau="30%", concurrency=2) as pair,
        open_pair(threads=1, ctx=512, policy="target") as other,
    ):
        one_by_one = [pair.solve(question).text for question in questions]
        assert all(other.solve(question).steps for question in questions)
        assert [one.text for one in pair.solve_many(questions)] == one_by_one


def test_the_package_shows_its_api() -> None:
    assert set(dir(arbitrage_cli)) >= {"open_pair", "Pair", "Solution", "UsageError"}
    assert all(getattr(arbitrage_cli, name) for name in arbitrage_cli.__all__)
    with scripted() as pair:
        assert {name for name in dir(pair) if name[0] != "_"} == {
            "close",
            "conversation",
            "solve",
            "solve_many",
            "stream",
        }


def test_every_example_of_the_guide_runs(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run all examples in one namespace, in order. A comment beside `print` is the expected output."""
    monkeypatch.setattr("arbitrage_cli.open_pair", lambda draft, target, **options: open_pair(ctx=512, threads=1, **options))
    examples = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    namespace: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, "guide", "exec"), namespace)  # noqa: S102 - our own text
        printed = capsys.readouterr().out
        for expected in re.findall(r"print\(.*\)  # (.*)", example):
            assert expected in printed
    assert len(examples) > 5
