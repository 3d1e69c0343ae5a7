"""Problems that a model's server refuses: every command records them with the server's reason, and solves the others."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from commands import Shown, bench, collect, solve, typed
from fake_chat import Api, ChatServer, chunk
from fake_server import Answer, HashServer, on_loopback
from faults import rows_of, write_problems

from arbitrage_cli import Pair, ServerError, ServerRequestError, open_pair
from arbitrage_cli.app.options import Options
from arbitrage_cli.inference.servers.model import PROBE_QUESTION

KEY, REASON = "sk-secret-0123", "input was flagged"
QUESTIONS = [f"{number} * 12 - 95" for number in range(31, 39)]
NAMES = [f"p{number}" for number in range(len(QUESTIONS))]
BAD, STATUSES = QUESTIONS[2], ["done", "done", "error", *["done"] * 5]
REFUSAL = Answer([{"error": {"message": f"Your {REASON} ({KEY})", "code": 403}}], 403)


class Refusing:
    """A chat API that refuses some questions. `asked` are the questions without those of probes."""

    def __init__(self) -> None:
        self.server = ChatServer(Api(), key=KEY)
        self.server.faults = self._fault
        self.refuses: Callable[[str], bool] = lambda question: question == BAD
        self.answer, self.asked, self.address = REFUSAL, list[str](), ""

    def _fault(self) -> Answer | None:
        question = next(one["content"] for one in self.server.bodies[-1]["messages"] if one["role"] == "user")
        if question == PROBE_QUESTION:
            return None
        self.asked.append(question)
        return self.answer if self.refuses(question) else None

    @property
    def options(self) -> Options:
        return typed(draft="scripted:draft", target=self.address, policy="target", max_tokens=8)


@pytest.fixture
def api(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Refusing]:
    monkeypatch.setenv("ARBITRAGE_TARGET_API_KEY", KEY)
    write_problems(quick_path / "problems.jsonl", QUESTIONS)
    made = Refusing()
    with on_loopback(made.server) as made.address:
        yield made


def test_solve_tries_missing_problems_before_refused_ones(api: Refusing, quick_path: Path) -> None:
    """Solved ones stay as they are. Standard output is in input order all the same."""
    assert solve(quick_path, api.options, limit="4").num_failed == 1
    first = rows_of(quick_path, "out.jsonl")
    api.refuses = lambda question: False
    api.asked.clear()
    solved = solve(quick_path, api.options, display=(shown := Shown()))
    assert (solved.num_failed, list(dict.fromkeys(api.asked))) == (0, [*QUESTIONS[4:], BAD])
    assert [one["id"] for one in shown.records] == NAMES
    records = rows_of(quick_path, "out.jsonl")
    assert [(one["id"], one["status"]) for one in records] == [(name, "done") for name in NAMES]
    assert [one in records for one in first] == [True, True, False, True]


def test_a_run_in_which_everything_is_refused_ends_and_is_resumed_behind_it(api: Refusing, quick_path: Path) -> None:
    questions = [f"{number} + 0" for number in range(50)]
    write_problems(quick_path / "problems.jsonl", questions)
    api.refuses = lambda question: True
    for _ in range(4):
        with pytest.raises(ServerError, match=f"20 problems.*{REASON}") as raised:
            solve(quick_path, api.options)
        assert raised.value.exit_code == 3
    assert api.asked == [*questions, *questions[:30]]
    api.asked.clear()
    api.refuses = lambda question: False
    assert solve(quick_path, api.options).num_failed == 0
    assert list(dict.fromkeys(api.asked)) == [*questions[30:], *questions[:30]]


def test_bench_ends_if_a_server_refuses_everything(api: Refusing, quick_path: Path) -> None:
    """Although the draft alone solves each of the problems."""
    write_problems(quick_path / "problems.jsonl", [f"{number} + 1" for number in range(30)])
    api.refuses = lambda question: True
    with pytest.raises(ServerError, match=f"20 problems.*{REASON}"):
        bench(quick_path, replace(api.options, policy="target,draft"))
    rows = rows_of(quick_path / "run")
    assert [row["policy"] for row in rows if row["status"] == "error"] == ["target"] * 20


@pytest.mark.parametrize("answer", [Answer([{}]), Answer([chunk({}, "stop")], is_streamed=True)], ids=["unknown", "empty"])
def test_bench_ends_if_a_server_answers_nothing_of_use(api: Refusing, quick_path: Path, answer: Answer) -> None:
    """Each of these answers has HTTP status 200, and may cost something."""
    write_problems(quick_path / "problems.jsonl", [f"{number} + 1" for number in range(30)])
    api.refuses, api.answer = lambda question: True, answer
    with pytest.raises(ServerError, match="20 problems"):
        bench(quick_path, api.options)
    assert len(api.asked) == 20


def test_collect_records_a_refusal(api: Refusing, quick_path: Path) -> None:
    """Its target must write steps."""
    server = HashServer(key=KEY)

    def fault() -> Answer | None:
        return REFUSAL if BAD in server.text_of(server.bodies[-1].get("prompt", ())) else None

    server.faults = fault
    with on_loopback(server) as address:
        assert collect(quick_path, replace(api.options, target=address, policy=None)).num_errors == 1
    rows = {row["id"]: row["status"] for row in rows_of(quick_path / "run")}
    assert [rows[name] for name in NAMES] == STATUSES


@pytest.fixture
def pair(api: Refusing) -> Iterator[Pair]:
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
