"""Policy `agree`: what it asks, records, counts, and tries again."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cli import QUESTION, RIGHT, WRONG, run
from commands import Shown, bench, solve, typed
from fake_chat import Api, ChatServer
from fake_server import Answer, Body, on_loopback
from faults import rows_of, write_problems
from made_up_runs import figures

from arbitrage_cli import Check, open_pair
from arbitrage_cli.system.files import models_folder

DRAFT, RELIABLE = "scripted:draft", "scripted:target"
MODELS = {"draft": DRAFT, "target": RELIABLE, "check": RELIABLE}
EASY = "2 * 3 + 4"  # the scripted draft is right; it is wrong on QUESTION
EXPRESSIONS = ("2 * 3 + 4", "37 * 12 - 95", "5 + 6", "14 * 13", "9 - 4", "21 * 11 + 1")


@pytest.mark.parametrize(
    ("question", "answers", "writer"),
    [(EASY, {"draft": "10", "check": "10"}, "draft"), (QUESTION, {"draft": WRONG, "check": RIGHT}, "target")],
)
def test_the_target_answers_if_the_answers_differ(question: str, answers: dict[str, str], writer: str) -> None:
    with open_pair(DRAFT, RELIABLE, check=RELIABLE, policy="target") as pair:
        solution, alone = pair.solve(question, policy="agree"), pair.solve(question)
    assert alone.check is None
    assert solution.check
    record = solution.to_dict()
    assert (record["answer"], record["tau"], record["score_is"]) == (answers["check"], None, None)
    compared = record["check"]["solutions"]
    assert {one["model"]: one["answer"] for one in compared} == solution.check.answers == answers
    assert record["check"]["agrees"] is (writer == "draft")
    kept, discarded = record["steps"], [step for one in compared for step in one["steps"]]
    assert {step["model"] for step in kept} == {writer}
    assert {step["model"] for step in discarded} == {"draft", "check", "target"} - {writer, "target"}
    for model in ("draft", "target", "check"):
        own = sum(step["tokens"] for step in (*kept, *discarded) if step["model"] == model)
        assert record["timing"][model]["decode_tokens"] == own


def test_figures_count_calls_of_the_target(quick_path: Path) -> None:
    write_problems(quick_path / "problems.jsonl", EXPRESSIONS)
    made = bench(quick_path, typed(**MODELS, policy="target,draft,agree"))
    found = {one["policy"]: one for one in figures(made.run.to_dict(), rows_of(quick_path / "run"))["policies"]}
    assert [found[name]["accuracy"] for name in ("target", "agree", "draft")] == [1.0, 1.0, 0.5]
    assert found["agree"]["ratios"]["called_rate"] == {"numerator": 3, "denominator": 6}


def test_without_a_checker_further_solutions_of_the_draft_are_the_check() -> None:
    files = models_folder() / "draft.gguf", models_folder() / "target.gguf"
    made: list[list[tuple[str, Check]]] = []
    for concurrency in (1, 3):
        with open_pair(*files, policy="agree", concurrency=concurrency, ctx=512) as pair:
            solutions = pair.solve_many(f"What is {one}?" for one in EXPRESSIONS)
            made.append([(solution.text, solution.check) for solution in solutions if solution.check])
    alone, together = ([(text, check.answers, _texts_of(check)) for text, check in one] for one in made)
    assert alone == together
    assert {check.agrees for _, check in made[0]} == {True, False}  # greedy solutions would always agree
    for _, check in made[0]:
        assert {step.model for step in check.discarded} == {"draft"}
        assert not check.agrees or [bool(solution.steps) for solution in check.solutions] == [False, True, True]


@pytest.mark.parametrize(("expression", "agrees"), [("3 + 4 * 5", False), ("12 + 7", True)])
def test_further_solutions_are_no_rejected_drafts(expression: str, agrees: bool) -> None:
    """All of the draft's steps are accepted if its solutions agree, and none otherwise."""
    models = ("--draft", "builtin:draft", "--target", "builtin:target", "--policy", "agree")
    record = run("solve", f"What is {expression}?", *models, "--json", "-q").record
    check, kept = record["check"], record["steps"]
    assert check["agrees"] is agrees
    assert record["acceptance_rate"] == (1.0 if agrees else 0.0)
    assert record["token_acceptance_rate"] == (1.0 if agrees else 0.0)
    greedy, *further = check["solutions"]
    assert [solution["sample"] for solution in further] == list(range(1, 1 + len(further)))
    assert (greedy["sample"], greedy["steps"] == []) == (0, agrees)
    discarded = [step for solution in check["solutions"] for step in solution["steps"]]
    written = sum(step["tokens"] for step in (*kept, *discarded) if step["model"] == "draft")
    proposed = sum((step["speculation_cost"] or {}).get("decode_tokens", 0) for step in kept)
    assert record["timing"]["draft"]["decode_tokens"] == written + proposed
    shown = run("solve", f"What is {expression}?", *models).err
    assert ("all 3 solutions answer" in shown) is agrees
    assert "2nd solution" in shown


def _texts_of(check: Check) -> list[str]:
    return ["".join(step.text for step in solution.steps) for solution in check.solutions]


# --- three chat APIs


class Answering(ChatServer):
    """A chat API that answers `shift` more than the right number."""

    def __init__(self, shift: int = 0) -> None:
        super().__init__(Api())
        self.shift = shift
        self.refused = ""  # a question
        self.unknown = ""  # a question that is answered with a text that states no answer

    def _chat(self, body: Body) -> Answer:
        if body["messages"][-1]["content"] == self.refused:
            return Answer([{"error": {"message": "refused"}}], 400)
        left, _, right = body["messages"][-1]["content"].partition(" + ")
        if body["messages"][-1]["content"] == self.unknown:
            return self._answer(["I cannot solve this.\n\n", f"See {self.unknown}"], "stop", 7, 9)
        number = int(left.split()[-1]) + int(right.strip("?")) + (self.shift if int(right.strip("?")) % 2 else 0)
        return self._answer(["I add.\n\n", f"It is \\boxed{{{number}}}."], "stop", 7, 9)

    def asked(self) -> Counter[str]:
        """Return how often each question was asked, without the questions that test the server."""
        questions = Counter(str(body["messages"][-1]["content"]) for body in self.bodies if "messages" in body)
        return Counter({question: count for question, count in questions.items() if "What" not in question})


@contextmanager
def three_apis() -> Iterator[tuple[dict[str, Answering], dict[str, str]]]:
    """A draft and a target, and a checker that is wrong about odd numbers. Yield them and their addresses."""
    servers = {"draft": Answering(), "check": Answering(1), "target": Answering()}
    with ExitStack() as stack:
        yield servers, {role: stack.enter_context(on_loopback(server)) for role, server in servers.items()}


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_chat_api_is_called_once_and_the_target_exactly_if_the_answers_differ(concurrency: int, tmp_path: Path) -> None:
    questions, shown = [f"{number} + {number // 2}" for number in range(10)], Shown()
    with three_apis() as (servers, models):
        solve(tmp_path, typed(**models, policy="agree", concurrency=concurrency), *questions, output=None, display=shown)
    differ = {question for question in questions if int(question.rpartition(" ")[2]) % 2}
    assert servers["draft"].asked() == servers["check"].asked() == Counter(questions)
    assert servers["target"].asked() == Counter(differ)
    assert [record["check"]["agrees"] for record in shown.records] == [question not in differ for question in questions]
    assert {record["timing"]["check"]["prefill_tokens"] for record in shown.records} == {7}


def test_two_texts_that_state_no_answer_do_not_agree(tmp_path: Path) -> None:
    """Both texts end with the same number."""
    shown = Shown()
    with three_apis() as (servers, models):
        servers["draft"].unknown = servers["check"].unknown = "2 + 2"
        solve(tmp_path, typed(**models, policy="agree"), "2 + 2", output=None, display=shown)
    (record,) = shown.records
    assert (record["answer"], record["check"]["agrees"]) == ("4", False)
    assert {solution["answer"] for solution in record["check"]["solutions"]} == {None}
    assert servers["target"].asked() == Counter(["2 + 2"])


def test_a_problem_that_the_checker_refuses_fails_alone_and_is_tried_again(quick_path: Path) -> None:
    write_problems(quick_path / "problems.jsonl", ("1 + 2", "3 + 4", "5 + 5"))
    with three_apis() as (servers, models):
        servers["check"].refused = "3 + 4"
        assert solve(quick_path, typed(**models, policy="agree")).num_failed == 1
        assert servers["target"].asked() == Counter(["5 + 5"])
        servers["check"].refused = ""
        shown = Shown()
        assert solve(quick_path, typed(**models, policy="agree"), display=shown).num_failed == 0
        assert servers["check"].asked() == Counter({"1 + 2": 1, "3 + 4": 2, "5 + 5": 1})
    assert [(record["answer"], record["status"]) for record in shown.records] == [(n, "done") for n in ("3", "7", "10")]
