"""Policy `agree` from the command line and from Python: what it asks, records, resumes and refuses."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cli import QUESTION, RIGHT, WRONG, Terminal, flat, run
from fake_chat import Api, ChatServer
from fake_server import Answer, Body, on_loopback
from faults import essence, rows_of, write_problems
from test_report_command import traces

from arbitrage_cli import Check, open_pair
from arbitrage_cli.system.files import models_folder

DRAFT, RELIABLE = "scripted:draft", "scripted:target"
MODELS = ("--draft", DRAFT, "--target", RELIABLE, "--check", RELIABLE, "--policy", "agree")
EASY = "2 * 3 + 4"  # the scripted draft is right; it is wrong on QUESTION
EXPRESSIONS = ("2 * 3 + 4", "37 * 12 - 95", "5 + 6", "14 * 13", "9 - 4", "21 * 11 + 1")


@pytest.mark.parametrize(
    ("question", "answers", "writer"),
    [(EASY, {"draft": "10", "check": "10"}, "draft"), (QUESTION, {"draft": WRONG, "check": RIGHT}, "target")],
)
def test_the_target_answers_if_the_answers_differ(question: str, answers: dict[str, str], writer: str) -> None:
    with open_pair(DRAFT, RELIABLE, check=RELIABLE, policy="target") as pair:
        solution, alone = pair.solve(question, policy="agree"), pair.solve(question)
    assert (type(solution.check), alone.check) == (Check, None)
    record = solution.to_dict()
    assert (record["answer"], record["tau"], record["score_is"]) == (answers["check"], None, None)
    assert (record["check"]["answers"], record["check"]["agrees"]) == (answers, writer == "draft")
    kept, discarded = record["steps"], record["check"]["discarded"]
    assert {step["model"] for step in kept} == {writer}
    assert {step["model"] for step in discarded} == {"draft", "check", "target"} - {writer, "target"}
    for model in ("draft", "target", "check"):
        own = sum(step["tokens"] for step in (*kept, *discarded) if step["model"] == model)
        assert record["timing"][model]["decode_tokens"] == own


def test_figures_count_calls_of_the_target_and_the_page_has_the_solutions_that_were_not_kept(tmp_path: Path) -> None:
    write_problems(tmp_path / "sums.jsonl", EXPRESSIONS)
    command = ("bench", *MODELS[:-1], "target,draft,agree", "--dataset", "sums.jsonl", "-q", "-o", "run")
    found = {one["policy"]: one for one in run(*command, "--json", cwd=tmp_path).record["policies"]}
    assert [found[name]["accuracy"] for name in ("target", "agree", "draft")] == [1.0, 1.0, 0.5]
    assert found["agree"]["ratios"]["called_rate"] == {"numerator": 3, "denominator": 6}
    assert run("report", "run", "-o", "page.html", cwd=tmp_path).code == 0
    checks = [
        [essence(one.get("check")) for one in rows] for rows in (traces(tmp_path / "page.html"), rows_of(tmp_path / "run"))
    ]
    assert [one for one in checks[0] if one] == [one for one in checks[1] if one]


@pytest.mark.parametrize(("question", "said"), [(EASY, 2), (QUESTION, 3)])
def test_the_live_view_shows_every_solution_once(question: str, said: int) -> None:
    with Terminal("solve", *MODELS, question) as terminal:
        assert terminal.wait() == 0
    assert flat(terminal.text).count("\\boxed{") == said
    assert terminal.text.splitlines()[-1] == ("10" if question == EASY else RIGHT)


def test_without_a_checker_further_solutions_of_the_draft_are_the_check() -> None:
    files = models_folder() / "draft.gguf", models_folder() / "target.gguf"
    made: list[list[tuple[str, Check]]] = []
    for concurrency in (1, 3):
        with open_pair(*files, policy="agree", concurrency=concurrency, ctx=512) as pair:
            solutions = pair.solve_many(f"What is {one}?" for one in EXPRESSIONS)
            made.append([(solution.text, solution.check) for solution in solutions if solution.check])
    alone, together = ([(text, check.answers, _texts(check)) for text, check in one] for one in made)
    assert alone == together
    assert {check.agrees for _, check in made[0]} == {True, False}  # greedy solutions would always agree
    for _, check in made[0]:
        assert {step.model for step in check.discarded} == {"draft"}
        assert not check.agrees or len(_texts(check)) == 2


def _texts(check: Check) -> list[str]:
    """Return the discarded solutions."""
    texts = "".join(step.text + "\f" * (step.stop == "end") for step in check.discarded)
    return texts.removesuffix("\f").split("\f")


# --- three chat APIs


class Answering(ChatServer):
    """A chat API that answers `shift` more than the right number, and cannot continue an answer."""

    def __init__(self, shift: int = 0) -> None:
        super().__init__(Api(continues=None))
        self.shift = shift
        self.refused = ""  # a question

    def _chat(self, body: Body) -> Answer:
        if body["messages"][-1]["role"] == "assistant":
            return Answer([{"error": {"message": "cannot continue"}}], 400)
        if body["messages"][-1]["content"] == self.refused:
            return Answer([{"error": {"message": "refused"}}], 400)
        left, _, right = body["messages"][-1]["content"].partition(" + ")
        number = int(left.split()[-1]) + int(right.strip("?")) + (self.shift if int(right.strip("?")) % 2 else 0)
        return self._answer(body, "", ["I add.\n\n", f"It is \\boxed{{{number}}}."], "stop", 7, 9)

    def asked(self) -> Counter[str]:
        """Return how often each question was asked, without the questions that test the server."""
        questions = Counter(str(body["messages"][-1]["content"]) for body in self.bodies if "messages" in body)
        return Counter({question: count for question, count in questions.items() if "What" not in question})


@contextmanager
def three_apis(checker_shift: int) -> Iterator[tuple[dict[str, Answering], tuple[str, ...]]]:
    servers = {"draft": Answering(), "check": Answering(checker_shift), "target": Answering()}
    with ExitStack() as stack:
        named = [(f"--{role}", stack.enter_context(on_loopback(server))) for role, server in servers.items()]
        yield servers, ("--policy", "agree", *(part for one in named for part in one))


@pytest.mark.parametrize("concurrency", ["1", "8"])
def test_a_chat_api_is_called_once_and_the_target_exactly_if_the_answers_differ(concurrency: str) -> None:
    questions = [f"{number} + {number // 2}" for number in range(10)]
    with three_apis(checker_shift=1) as (servers, models):
        made = run("solve", *models, "--concurrency", concurrency, stdin="\n".join(questions).encode())
        assert made.code == 0, made.err
    differ = {question for question in questions if int(question.rpartition(" ")[2]) % 2}
    assert servers["draft"].asked() == servers["check"].asked() == Counter(questions)
    assert servers["target"].asked() == Counter(differ)
    for record in made.records:
        assert record["check"]["agrees"] == (record["problem"] not in differ)
        assert record["timing"]["check"]["prefill_tokens"] == 7


def test_a_problem_that_the_checker_refuses_fails_alone_and_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "sums.txt").write_text("1 + 2\n3 + 4\n5 + 5\n")
    with three_apis(checker_shift=1) as (servers, models):
        command = ("solve", *models, "-i", "sums.txt", "-o", "out.jsonl")
        servers["check"].refused = "3 + 4"
        assert run(*command, cwd=tmp_path).code == 1
        assert servers["target"].asked() == Counter(["5 + 5"])
        servers["check"].refused = ""
        assert run(*command, cwd=tmp_path).code == 0
        assert servers["check"].asked() == Counter({"1 + 2": 1, "3 + 4": 2, "5 + 5": 1})
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(record["answer"], record["status"]) for record in records] == [("3", "done"), ("7", "done"), ("10", "done")]
