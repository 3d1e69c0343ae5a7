"""A solved problem as a line of JSON: every field, with extreme values."""

import json
import math
from dataclasses import asdict, replace
from typing import Any

import pytest
from cli import accept, escalate, finish, make_step, make_trace
from hypothesis import given
from hypothesis import strategies as st

from arbitrage_cli.errors import ContextFullError, ConversationError
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.folder import encode
from arbitrage_cli.runs.records import BENCH, RunInfo, tally, to_json
from arbitrage_cli.runs.rows import AttemptRow, SolutionRow, read_row
from arbitrage_cli.types import Cost, Decision, Finished, Grade

RUN = RunInfo(
    Route(POLICIES["entropy"], 1.0),
    models={"draft": "small.gguf", "target": "big.gguf"},
    descriptions={"draft": "small", "target": "big"},
)


def written(model: str, text: str, tokens: int, seconds: float, stop: str = "separator") -> dict[str, Any]:
    step = {"model": model, "phase": "answer", "text": text, "tokens": tokens, "seconds": seconds, "stop": stop}
    return step | {"cost": {"decode_tokens": tokens, "decode_seconds": seconds}, "speculation_cost": None}


def test_record_of_a_routed_problem() -> None:
    trace = make_trace(escalate(), accept("So \\boxed{4}.", stop="end"), identifier="p1")
    made = SolutionRow.of(finish(trace, alone=3.0), RUN).to_dict()
    assert made == {
        "id": "p1",
        "problem": "What is 2 + 2?",
        "text": "2 + 2 = 4.\n\nSo \\boxed{4}.",
        "answer": "4",
        "stop": "end",
        "status": "done",
        "error": None,
        "steps": [
            {
                **written("target", "2 + 2 = 4.\n\n", 7, 2.0),
                "decision": "escalate",
                "score": 1.5,
                "advantage": None,
                "discarded": written("draft", "2 + 2 = 5.\n\n", 5, 0.5),
            },
            {
                **written("draft", "So \\boxed{4}.", 5, 0.5, "end"),
                "decision": "accept",
                "score": 0.2,
                "advantage": None,
                "discarded": None,
            },
        ],
        "acceptance_rate": 0.5,
        "token_acceptance_rate": 0.5,
        "seconds": 3.0,
        "target_alone_seconds_estimate": 3.0,
        "policy": "entropy",
        "tau": 1.0,
        "tau_name": None,
        "wrong_equations": [],
        "warnings": [],
        "score_is": "entropy of the step's first token (nats)",
        "settings": {},
        "draft": "small.gguf",
        "target": "big.gguf",
        "models": {"draft": "small", "target": "big"},
        "timing": {
            "draft": asdict(Cost(decode_tokens=10, decode_seconds=1.0)),
            "target": asdict(Cost(decode_tokens=7, decode_seconds=2.0)),
        },
    }


def test_record_of_rated_steps() -> None:
    draft, target = make_step("draft"), make_step("target", stop="end")
    decision = Decision(target, draft=draft, target=target, advantage=0.25)
    made = SolutionRow.of(Finished(make_trace(decision), reward_cost=Cost(9, 1.5, 3, 0.5)), RUN).to_dict()
    assert made["steps"][0]["advantage"] == 0.25
    assert (made["timing"]["reward"]["prefill_tokens"], made["timing"]["reward"]["decode_seconds"]) == (9, 0.5)


def test_steps_with_wrong_equations_are_named() -> None:
    """Thoughts may contain errors that are corrected later."""
    thought = Decision(replace(make_step("target", "2 + 2 = 5\n\n"), phase="think"))
    steps = [thought, accept("12 - 81 = 1\n\n"), accept("2 + 2 = 4\n\n"), accept("So 3 * 3 = 6.", stop="end")]
    assert SolutionRow.of(finish(make_trace(*steps)), RUN).wrong_equations == [2, 4]


def test_only_mathematics_has_equations() -> None:
    """An equals sign in a program, or in other text, may mean something else."""
    trace = make_trace(accept("memo[0 + 1] = 2\n"), accept("It lasted in 1990-1995 = 5 years.", stop="end"))
    assert SolutionRow.of(finish(trace), RUN).wrong_equations == [1, 2]
    assert SolutionRow.of(finish(trace), replace(RUN, has_equations=False)).wrong_equations == []


def attempted(finished: Finished) -> AttemptRow:
    facts = {"sample": 2, "level": "hard", "gold": {"answer": "4"}, "grade": Grade("correct", "4", "the same text")}
    route = Route(POLICIES["entropy"], 1.0)
    return AttemptRow.of(finished, route, {"router": 0.25, "program": None}, answer="4", wall_seconds=3.5, **facts)


def test_row_is_the_record_with_what_was_attempt() -> None:
    finished = finish(make_trace(accept("So \\boxed{4}.", stop="end")))
    row, recorded = attempted(finished), SolutionRow.of(finished, RUN).to_dict()
    assert row == read_row(encode(row.to_dict()), BENCH)
    made = row.to_dict()
    assert (made["sample"], made["level"], made["gold"], made["status"]) == (2, "hard", {"answer": "4"}, "done")
    assert made["grade"] == {"value": "correct", "answer": "4", "explanation": "the same text"}
    assert (made["wall_seconds"], made["seconds"]) == (3.5, recorded["seconds"])
    assert made["timing"] == recorded["timing"] | {"router": {"seconds": 0.25}}


@pytest.mark.parametrize(
    ("finished", "status", "error", "stop"),
    [
        (finish(make_trace(accept(stop="context"))), "done", None, "context"),
        (finish(make_trace(accept()), ContextFullError("too long")), "done", None, "context"),
        (finish(make_trace(), ContextFullError("too long")), "error", "too long", None),
        (finish(make_trace(accept()), ConversationError("nothing\nto say")), "error", "nothing to say", None),
    ],
    ids=["filled", "no room for what was accepted", "no room for the prompt", "two lines"],
)
def test_row_is_done_or_an_error(finished: Finished, status: str, error: str | None, stop: str | None) -> None:
    made = attempted(finished)
    assert (made.status, made.error, made.stop) == (status, error, stop)


@pytest.mark.parametrize(
    ("tau", "written"), [(math.inf, "inf"), (-math.inf, "-inf"), (0.5, 0.5), (-1.0, -1.0), (None, None)]
)
def test_tau_is_valid_json(tau: float | None, written: object) -> None:
    line = to_json(
        SolutionRow.of(finish(make_trace(accept(stop="end"))), replace(RUN, route=Route(POLICIES["entropy"], tau))).to_dict()
    )
    assert json.loads(line, parse_constant=pytest.fail)["tau"] == written


@given(st.text(), st.text(), st.text())
def test_any_text_is_one_line_of_ascii_and_comes_back(question: str, identifier: str, text: str) -> None:
    trace = make_trace(accept(text, stop="end"), question=question, identifier=identifier)
    line = to_json(SolutionRow.of(finish(trace), RUN).to_dict())
    assert line.isascii()
    assert len(line.splitlines()) == 1
    read = json.loads(line)
    assert (read["problem"], read["id"], read["text"]) == (question, identifier, text)


def test_figures_add_up() -> None:
    early = replace(make_step("draft"), stop="early")
    target = replace(make_step("target"), speculation_cost=Cost(decode_tokens=3, decode_seconds=0.25))
    found = tally([accept(), escalate(), Decision(target, draft=early, target=target)])
    assert (found.drafted_steps, found.accepted_steps, found.stopped_steps, found.target_steps) == (3, 1, 1, 2)
    assert (found.wasted_tokens, found.draft_cost.decode_tokens, found.seconds) == (10, 18, 5.75)
