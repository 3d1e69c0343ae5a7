"""Problems that a model's server refuses: every command records them with the server's reason, and solves the others."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli import assert_refused, run
from fake_chat import Api, ChatServer
from fake_server import Answer, on_loopback
from faults import rows_of, write_problems

from arbitrage_cli import Pair, ServerError, ServerRequestError, open_pair
from arbitrage_cli.inference.servers.model import COUNTING, PROBE_PROMPT

PROBED = [dialogue.messages[0]["content"] for dialogue in (PROBE_PROMPT, COUNTING)]
KEY, REASON = "sk-secret-0123", "input was flagged"
ENV = {"ARBITRAGE_TARGET_API_KEY": KEY}
QUESTIONS = [f"{number} * 12 - 95" for number in range(31, 39)]
NAMES = [f"p{number}" for number in range(len(QUESTIONS))]
BAD, STATUSES = QUESTIONS[2], ["done", "done", "error", *["done"] * 5]
REFUSAL = Answer([{"error": {"message": f"Your {REASON} ({KEY})", "code": 403}}], 403)


class Refusing:
    """A chat API that refuses some questions. `asked` are the questions without those of probes."""

    def __init__(self) -> None:
        self.server = ChatServer(Api(names_stop=True), key=KEY)
        self.server.faults = self._fault
        self.refuses: Callable[[str], bool] = lambda question: question == BAD
        self.answer, self.asked, self.address = REFUSAL, list[str](), ""

    def _fault(self) -> Answer | None:
        question = next(one["content"] for one in self.server.bodies[-1]["messages"] if one["role"] == "user")
        if question in PROBED:
            return None
        self.asked.append(question)
        return self.answer if self.refuses(question) else None

    @property
    def models(self) -> tuple[str, ...]:
        return "--draft", "scripted:draft", "--target", self.address, "--max-tokens", "8"


@pytest.fixture
def api(quick_path: Path) -> Iterator[Refusing]:
    write_problems(quick_path / "problems.jsonl", QUESTIONS)
    made = Refusing()
    with on_loopback(made.server) as made.address:
        yield made


def records_of(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def test_solve_tries_missing_problems_before_refused_ones(api: Refusing, quick_path: Path) -> None:
    """Solved ones stay as they are. Standard output is in input order all the same."""
    command = ("solve", *api.models, "--policy", "target", "-i", "problems.jsonl", "-o", "out.jsonl", "--format", "json")
    assert run(*command, "--limit", "4", cwd=quick_path, env=ENV).code == 1
    first = records_of(quick_path)
    api.refuses = lambda question: False
    api.asked.clear()
    resumed = run(*command, cwd=quick_path, env=ENV)
    assert resumed.code == 0, resumed.err
    assert list(dict.fromkeys(api.asked)) == [*QUESTIONS[4:], BAD]
    assert [one["id"] for one in resumed.records] == NAMES
    records = records_of(quick_path)
    assert [(one["id"], one["status"]) for one in records] == [(name, "done") for name in NAMES]
    assert [one in records for one in first] == [True, True, False, True]


def test_a_run_in_which_everything_is_refused_ends_and_is_resumed_behind_it(api: Refusing, quick_path: Path) -> None:
    (quick_path / "many.txt").write_text("".join(f"{number}\n" for number in range(50)))
    api.refuses = lambda question: True
    command = ("solve", *api.models, "--policy", "target", "-i", "many.txt", "-o", "out.jsonl")
    for _ in range(2):
        assert_refused(run(*command, cwd=quick_path, env=ENV), 3, "20 problems", REASON)
    assert api.asked == [str(number) for number in range(40)]
    run(*command, cwd=quick_path, env=ENV)
    assert_refused(run(*command, cwd=quick_path, env=ENV), 3, "20 problems", REASON)
    assert api.asked[40:] == [str(number) for number in (*range(40, 50), *range(30))]
    api.refuses = lambda question: False
    assert run(*command, cwd=quick_path, env=ENV).code == 0
    assert list(dict.fromkeys(api.asked[80:])) == [str(number) for number in (*range(30, 50), *range(30))]


def test_bench_ends_if_a_server_refuses_everything(api: Refusing, quick_path: Path) -> None:
    """Although the draft alone solves each of the problems."""
    write_problems(quick_path / "many.jsonl", [f"{number} + 1" for number in range(30)])
    api.refuses = lambda question: True
    command = ("bench", *api.models, "--policy", "target,draft", "--dataset", "many.jsonl", "-o", "run")
    assert_refused(run(*command, cwd=quick_path, env=ENV), 3, "20 problems", REASON)
    rows = rows_of(quick_path / "run")
    assert [row["policy"] for row in rows if row["status"] == "error"] == ["target"] * 20


def test_collect_records_a_refusal(api: Refusing, quick_path: Path) -> None:
    command = ("collect", *api.models, "--reward", "rollout", "--dataset", "problems.jsonl", "-o", "run")
    ended = run(*command, cwd=quick_path, env=ENV)
    rows = {row["id"]: row["status"] for row in rows_of(quick_path / "run")}
    assert (ended.code, [rows[name] for name in NAMES]) == (1, STATUSES), ended.err


def test_a_chat_goes_on_after_a_refusal(api: Refusing) -> None:
    api.answer = Answer([{"error": REASON}], 401)
    lines = "".join(f"{question}\n" for question in (BAD, QUESTIONS[0]))
    result = run("chat", *api.models, "--policy", "target", stdin=lines.encode(), env=ENV)
    assert (result.code, REASON in result.err, bool(result.out.strip())) == (0, True, True), result.err


@pytest.fixture
def pair(api: Refusing, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setenv("ARBITRAGE_TARGET_API_KEY", KEY)
    with open_pair("scripted:draft", api.address, policy="target", max_tokens=8, concurrency=2) as opened:
        yield opened


def test_a_refused_question_is_an_error_of_its_solution(pair: Pair) -> None:
    solutions = list(pair.solve_many(QUESTIONS))
    assert [bool(solution.error) for solution in solutions] == [status == "error" for status in STATUSES]
    with pytest.raises(ServerRequestError, match=REASON) as raised:
        pair.solve(BAD)
    assert raised.value.status == 403
    assert pair.solve(QUESTIONS[0]).text


def test_solve_many_ends_if_everything_is_refused(pair: Pair, api: Refusing) -> None:
    api.refuses = lambda question: True
    solutions = pair.solve_many(f"{number} + 1" for number in range(40))
    with pytest.raises(ServerError, match=REASON):
        list(solutions)
    assert len(api.asked) < 25
    api.refuses = lambda question: False
    assert not any(solution.error for solution in pair.solve_many(QUESTIONS))
