"""The live view of problems: in a terminal with the scripted models, and driven by made-up events on an emulated screen."""

import io
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cli import MODELS, QUESTION, Terminal, accept, escalate, finish, flat, make_step, make_trace
from commands import SCRIPTED, solve, typed
from marks import rarely
from screens import Clock, View, is_struck, make_screen

from arbitrage_cli.display.decisions import decision_lines
from arbitrage_cli.display.display import CommandDisplay, PlainScreen
from arbitrage_cli.display.live import REDRAW_SECONDS, LiveScreen
from arbitrage_cli.display.wording import checked, opening
from arbitrage_cli.model_files.checksums import FileProgress
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.records import RunInfo
from arbitrage_cli.types import Check, CheckedSolution, Decision, ModelRole, Rating, Started, Writing, Wrote

SIZES = [(80, 24), (40, 10), (20, 5), (200, 50)]
RUN = RunInfo(Route(POLICIES["entropy"], 1.0), num_problems=1)
WIDE = "\u6f22\u5b57\u306e\u7b54\u3048"  # five characters, two cells each
EMOJI = "\U0001f600\U0001f680"
KINDS = ["words", "x", "CJK", "emoji", "tabs"]

MakeView = Callable[..., View]


@pytest.fixture
def make_view(monkeypatch: pytest.MonkeyPatch) -> MakeView:
    return lambda columns=80, rows=24, run=RUN: View(make_screen(monkeypatch, columns, rows), run)


@pytest.mark.parametrize(("columns", "rows"), [SIZES[0], *rarely(SIZES[1])])
def test_every_step_stays_in_the_scrollback_once(columns: int, rows: int) -> None:
    with Terminal("solve", *MODELS, "--policy", "logprob", QUESTION, columns=columns, rows=rows) as terminal:
        assert terminal.wait() == 0
    shown = flat(terminal.text)
    for text in (
        f"problem: {QUESTION}",
        "37 * 12 = 454.",
        "37 * 12 = 444.",
        "444 - 95 = 349.",
        "The answer is \\boxed{349}.",
        "accepted 2/3 steps (67%)",
    ):
        assert shown.count(text) == 1, terminal.text
    assert "\u2026" not in shown  # what is cut to one row is the region's alone
    assert terminal.text.splitlines()[-1] == "349"  # stdout is the same terminal: the answer is there once
    assert "answer 349" not in shown
    assert not terminal.screen.cursor.hidden


def test_a_step_that_is_escalated_because_it_repeats_itself_says_so() -> None:
    draft, target = make_step("draft", "2 = 2 = 2", stop="loop"), make_step("target")
    decision = Decision(target, draft=draft, target=target, score=0.2)
    line, *_ = map(str, decision_lines(make_trace(decision), 0, RUN))
    assert ("0.20 ≤ 1.00" in line, "repeats itself" in line) == (True, True)


def test_the_rule_names_the_tau_and_the_score() -> None:
    for policy in (policy for policy in POLICIES.values() if policy.has_tau):
        rule = opening(RunInfo(Route(policy, 0.25)), has_details=True)
        assert "0.25" in rule[1]
        assert any(policy.score_is in line for line in rule)


LONG = "Ann has 3 apples. " * 30


@pytest.mark.parametrize(
    ("question", "shown"),
    [
        ("\n  Add  these. \n\n37 * 12", "Add these. 37 * 12"),
        (LONG, f"{LONG[:199]}~"),
        ("2 + 2\n", "2 + 2"),
    ],
    ids=["lines", "long", "one line"],
)
def test_a_problem_is_shown_in_one_line(make_view: MakeView, question: str, shown: str) -> None:
    view, plain = make_view(300), io.StringIO()
    display = CommandDisplay(PlainScreen(plain), io.StringIO())
    display.begin(RUN)
    display.handle(Started(view.start(question)))
    assert view.screen.lines[-2:] == [plain.getvalue().splitlines()[-1], "     0 s"]
    assert view.screen.lines[-2] == f"problem: {shown}"


@pytest.mark.parametrize("then", ["begin", "note", "result", "close"])
def test_a_line_about_loading_does_not_stay(monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    screen, clock = make_screen(monkeypatch, 80, 24), Clock()
    display, clock.now = CommandDisplay(LiveScreen(screen), io.StringIO(), clock=clock), clock.now + REDRAW_SECONDS
    display.loading("loading target", "large.gguf", 0.69)
    assert screen.text == "loading target: 69% of large.gguf"
    {
        "begin": lambda: display.begin(RUN),
        "note": lambda: display.note("a note"),
        "result": lambda: display.result("349"),
        "close": display.close,
    }[then]()
    assert "loading" not in screen.text


def test_a_pipe_receives_a_line_about_a_long_phase_every_few_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    display = CommandDisplay(PlainScreen(stream), io.StringIO(), clock=clock)
    for seconds, fraction in ((5.1, 0.0), (4.8, 0.4), (0.3, 0.5), (4.8, 0.8), (0.3, 1.0)):
        clock.now += seconds
        display.loading("loading target", "large.gguf", fraction)
    display.loading("measuring target, up to 5 s", "large.gguf")
    clock.now += 6.0
    display.loading("measuring draft and target, up to 10 s", "small.gguf and large.gguf")
    clock.now += 6.0
    display.fetching(FileProgress("hashing", "large.gguf", 10**9, 2 * 10**9))
    assert stream.getvalue().splitlines() == [
        "loading target: large.gguf",
        "loading target: 50% of large.gguf",
        "loading target: large.gguf",
        "measuring draft and target, up to 10 s: small.gguf and large.gguf",
        "hashing large.gguf, 1.0 GB of 2.0 GB",
    ]


@pytest.mark.parametrize(
    ("run", "waited", "num_unread", "is_shown"),
    [
        (RUN, 6.0, 2048, True),
        (RUN, 1.0, 2048, False),
        (RUN, 6.0, 40, False),
        (replace(RUN, num_problems=3), 6.0, 2048, False),
    ],
)
def test_a_pipe_receives_a_line_about_a_long_prefill(
    run: RunInfo, waited: float, num_unread: int, *, is_shown: bool
) -> None:
    """The event is repeated while the prompt is read."""
    stream, clock, trace = io.StringIO(), Clock(), make_trace()
    display = CommandDisplay(PlainScreen(stream), io.StringIO(), clock=clock)
    display.begin(run)
    display.handle(Started(trace))
    clock.now += waited
    display.handle(Writing(trace, "target", num_unread))
    assert ("target: prefill 2,048 tokens" in stream.getvalue().splitlines()) is is_shown
    assert ("prefill" in stream.getvalue()) is is_shown


def test_step_is_shown_while_it_is_written(make_view: MakeView) -> None:
    view = make_view()
    trace = view.start()
    view.write(trace, "draft", num_unread=321)
    assert "draft   prefill 321 tokens" in view.screen.text
    view.write(trace, "draft", "First ", "add ", "two.")
    assert view.screen.text.endswith("First add two.\n     0 s")
    assert "  1  draft   3 tokens" in view.screen.text
    assert view.screen.screen.cursor.hidden
    view.clock.now += REDRAW_SECONDS * 1.01
    view.display.handle(Rating(trace))
    assert "draft   scoring" in view.screen.text
    view.write(trace, "target", "2 + 2 = 4.")
    assert "scoring" not in view.screen.text


def test_a_narrow_line_of_figures_is_cut_at_its_end(make_view: MakeView) -> None:
    view = make_view(44, 20)
    trace = view.start()
    view.decide(trace, escalate())
    view.write(trace, "draft", "a long step ", "that goes on ", "and on, over several rows of the screen")
    figures = view.screen.lines[-1]
    assert figures.startswith("     0 s; accepted 0/1 steps (0%)")
    assert (len(figures), figures[-1]) == (43, "\u2026")


@pytest.mark.parametrize("columns", range(20, 60))
def test_a_number_stays_beside_its_unit(make_view: MakeView, columns: int) -> None:
    view = make_view(columns, 50)
    trace = view.start()
    view.decide(trace, escalate())
    view.decide(trace, accept(stop="end"))
    view.display.handle(finish(trace, alone=4.0))
    view.display.close()
    rows = [line.split() for line in view.screen.lines]
    assert sum(row.count("s") + row.count("s,") + row.count("s;") for row in rows) >= 4
    assert [row for row in rows if row and row[0] in ("s", "s,", "s;")] == []


def test_a_terminal_of_unknown_size_is_not_a_narrow_one(make_view: MakeView) -> None:
    view = make_view()
    view.screen.size = os.terminal_size((0, 0))
    view.decide(view.start(), accept())
    assert any("0.20 ≤ 1.00" in line for line in view.screen.lines)


@pytest.mark.parametrize(
    ("needs_answer", "question", "lacks_one"),
    [(True, QUESTION, True), (False, QUESTION, False), (True, "What is the capital of France?", False)],
)
def test_only_a_solution_that_needs_an_answer_lacks_one(
    make_view: MakeView, *, needs_answer: bool, question: str, lacks_one: bool
) -> None:
    """A question without a number has nothing to compute."""
    view = make_view(run=replace(RUN, needs_answer=needs_answer))
    trace = view.start(question)
    view.decide(trace, accept("A router hums softly.", stop="end"))
    view.display.handle(finish(trace))
    assert ("no answer found" in view.screen.text) == lacks_one


@pytest.mark.parametrize(
    ("solutions", "number"),
    [
        ([("draft", None, True)], 1),
        ([("draft", "18", True), ("check", None, True)], 1),
        ([("draft", None, True), ("check", None, False)], 1),
        ([("draft", None, True), ("check", None, True)], 2),
    ],
)
def test_only_finished_solutions_are_said_to_have_no_answer(
    solutions: list[tuple[ModelRole, str | None, bool]], number: int
) -> None:
    compared = [CheckedSolution(model, answer, [], has_ended=has_ended) for model, answer, has_ended in solutions]
    assert checked(Check(compared, agrees=False)).count("no answer") == number


def test_the_facts_of_a_step_are_indented_in_a_narrow_terminal(make_view: MakeView) -> None:
    view = make_view(44, 20)
    view.decide(view.start(), escalate())
    view.display.close()
    first = next(index for index, line in enumerate(view.screen.lines) if line.startswith("  1  target"))
    assert view.screen.lines[first + 1].startswith("     ")
    assert view.screen.lines[first + 1].strip().startswith("1.50 > 1.00")


def test_each_question_of_a_chat_has_its_own_figures(make_view: MakeView) -> None:
    view = make_view()
    for _ in range(2):
        trace = view.start()
        view.decide(trace, accept("The first step. "))
        view.write(trace, "draft", "The second step")
        assert view.screen.lines[-1].startswith("     0 s; accepted 1/1 steps (100%); 5 draft tokens at")
        view.decide(trace, accept(stop="end"))
        view.display.handle(finish(trace))
        view.clock.now += 100.0


def test_the_totals_name_the_time_of_the_models_and_of_the_clock(make_view: MakeView) -> None:
    view = make_view(200, run=RunInfo(Route(POLICIES["entropy"], 1.0), num_problems=2))
    for _ in range(2):
        trace = view.start()
        view.clock.now += 10.0
        view.decide(trace, escalate(stop="end"))
        view.display.handle(finish(trace))
    view.display.end()
    assert {"models 5.00 s, elapsed 20.00 s", "2 problems"} <= {*view.screen.lines[-1].split("; ")}


def test_view_is_not_redrawn_for_every_token(make_view: MakeView) -> None:
    view = make_view()
    trace = view.start()
    view.display.handle(Writing(trace, "draft", 1))
    before = view.screen.num_writes
    for _ in range(1000):
        view.clock.now += REDRAW_SECONDS / 100
        view.display.handle(Wrote(trace, "draft", "x"))
    assert 1 <= view.screen.num_writes - before <= 11


def test_rejected_draft_stays_visible_while_the_target_works(make_view: MakeView) -> None:
    view = make_view()
    trace = view.start()
    view.write(trace, "draft", "2 + 2 = 5.")
    for num_unread in (300, 172, 44):
        view.display.handle(Writing(trace, "target", num_unread))
        assert f"target  prefill {num_unread} tokens" in view.screen.text
        assert is_struck(view.screen.screen, "2 + 2 = 5.")
    view.write(trace, "target", "2 + 2 =")
    assert "target  1 token" in view.screen.text
    assert is_struck(view.screen.screen, "2 + 2 = 5.")
    view.decide(trace, escalate())
    assert view.screen.text.count("2 + 2 = 5.") == view.screen.text.count("2 + 2 = 4.") == 1
    assert is_struck(view.screen.screen, "2 + 2 = 5.")
    assert not is_struck(view.screen.screen, "4.")


@pytest.mark.parametrize(("columns", "rows"), [*SIZES, (20, 9), (16, 12), (8, 2)])
@pytest.mark.parametrize("text", ["word " * 300, "x" * 3000, WIDE * 200, EMOJI * 200, "a\tb\n" * 300], ids=KINDS)
def test_region_never_outgrows_the_terminal(make_view: MakeView, columns: int, rows: int, text: str) -> None:
    view = make_view(columns, rows)
    trace = view.start("2 + 2")
    view.decide(trace, escalate())
    finished = view.screen.text.rpartition("\n")[0]  # without the line of figures
    view.write(trace, "draft", *(text[start : start + 97] for start in range(0, len(text), 97)), "$")
    assert "$" in view.screen.text or rows < 4  # the last rows of a long text are shown
    view.write(trace, "target", text)
    assert view.screen.text.startswith(finished)
    assert any(re.match(r" +2  t", line) for line in view.screen.screen.display), view.screen.text
    view.decide(trace, accept("4.", stop="end"))
    view.display.close()
    assert view.screen.text.startswith(finished)
    assert view.screen.text.endswith("     4.")
    assert not view.screen.screen.cursor.hidden


SHARED = RunInfo(Route(POLICIES["entropy"], 1.0), num_problems=7, concurrency=3)


def test_several_at_once_are_counted(make_view: MakeView) -> None:
    view = make_view(run=SHARED)
    traces = [make_trace(question=f"What is {number} + 1?", identifier=f"p{number}") for number in range(3)]
    for trace in traces:
        view.display.handle(Started(trace))
        view.write(trace, "draft", f"text of {trace.problem.id}")
    assert view.screen.text.splitlines()[-1] == "3 problems at once; 0/7"
    view.decide(traces[1], accept(stop="end"))
    view.display.handle(finish(traces[1]))
    view.write(traces[2], "target", "x")
    shown = view.screen.text.splitlines()
    assert "problem p1:   1  draft   accept" in view.screen.text
    assert shown[-2] == "2 problems at once; 1/7; about 2 s left"


@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_region_of_many_fits_any_terminal(make_view: MakeView, columns: int, rows: int) -> None:
    view = make_view(columns, rows, run=RunInfo(Route(POLICIES["draft"]), concurrency=32))
    traces = [make_trace(identifier=WIDE * (number % 3) + str(number)) for number in range(32)]
    for trace in traces:
        view.display.handle(Started(trace))
    for trace in traces:
        view.write(trace, "draft", "a long text " * 30)
    before = view.screen.text
    view.write(traces[0], "draft", "b")
    assert len(view.screen.text.splitlines()) == len(before.splitlines())
    view.display.close()
    assert not view.screen.screen.cursor.hidden


@pytest.mark.parametrize(("question", "shown"), [("2 * 3 + 4", 2), (QUESTION, 3)])
def test_every_solution_of_agree_is_shown_once(make_view: MakeView, tmp_path: Path, question: str, shown: int) -> None:
    view, models = make_view(), {**SCRIPTED, "check": "scripted:target"}
    solve(tmp_path, typed(**models, policy="agree"), question, output=None, display=view.display)
    view.display.close()
    assert view.screen.text.count("\\boxed{") == shown


def test_a_terminal_that_knows_only_ascii() -> None:
    """Permanent output is ASCII, and no escape sequence in place of a character widens the live region."""
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with Terminal("solve", *MODELS, QUESTION, columns=40, env=ascii_only) as terminal:
        assert terminal.wait() == 0
    assert "<= 1.00 " in flat(terminal.text)
    assert b"\\u2264" not in terminal.raw
    assert b"\\u2026" not in terminal.raw


def test_only_mathematics_has_wrong_equations(make_view: MakeView) -> None:
    view = make_view(200, 40, run=replace(RUN, has_equations=False))
    trace = view.start("Which?")
    trace.add(accept("memo[0 + 1] = 2", stop="end"))
    view.display.handle(finish(trace))
    assert not any("wrong equation" in line for line in view.screen.lines)


@pytest.mark.parametrize("num_problems", [1, 2])
def test_reasons_for_doubt_are_shown_with_each_answer(make_view: MakeView, num_problems: int) -> None:
    view = make_view(200, 40, run=replace(RUN, num_problems=num_problems, warnings=lambda problem: ["a doubt"]))
    for question in ("Which?", "What?"):
        trace = view.start(question)
        trace.add(accept("12 - 81 = 1", stop="end"))
        view.display.handle(finish(trace))
    assert sum("step 1 has a wrong equation" in line for line in view.screen.lines) == 2
    assert sum("a doubt" in line for line in view.screen.lines) == 2
