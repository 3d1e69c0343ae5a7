"""Why steps were accepted or escalated: explanations, and what `arbitrage explain` shows."""

import json
from pathlib import Path

import numpy as np
import pytest
from cli import ESCAPE, flat, pair_named_mine, run
from collected import World as MadeUp
from collected import make_states, questions, write_run
from test_head import make_draft, make_head

from arbitrage_cli.routing.explain import Explanation, explain_solution, explain_states, group
from arbitrage_cli.routing.features import FEATURES
from arbitrage_cli.routing.head_file import save
from arbitrage_cli.routing.states import features_of
from arbitrage_cli.training.tau_tables import Outcomes, make_table
from arbitrage_cli.types import Cost, Decision, Limits, Problem, Step, Trace

QUESTION = "What is 37 * 12 - 95?"
ZEROS = np.zeros(50)
OUTCOMES = Outcomes(np.arange(50), np.arange(50), ZEROS, ZEROS + 1, ZEROS + 5, ZEROS + 5, ZEROS + 5, ZEROS)
TAUS = {**make_table(np.linspace(0.1, 0.9, 50), OUTCOMES, [0.5], None).to_json(), "named": {"exact": 0.25}}


def make(probability: float, advantage: float | None, tau: float = 0.5) -> Explanation:
    return Explanation(0, probability, tau, (("tokens", 1.0),), advantage=advantage)


@pytest.mark.parametrize(
    ("probability", "advantage", "judgement", "regret"),
    [
        (0.9, 1.0, "improved", 0.0),
        (0.9, 0.0, "wasted", 0.0),
        (0.9, -0.5, "wasted", 0.5),
        (0.1, 1.0, "missed", 1.0),
        (0.1, -0.5, "spared", 0.0),
        (0.5, 0.25, "missed", 0.25),  # a tie with tau keeps the draft
        (0.9, None, None, None),
    ],
)
def test_oracle_judges(probability: float, advantage: float | None, judgement: str | None, regret: float | None) -> None:
    """By what the other choice would have gained; without rewards there is no judgement."""
    found = make(probability, advantage)
    assert (found.judgement, found.regret) == (judgement, regret)


def test_groups_add_up() -> None:
    ones = [make(0.9, 1.0), make(0.9, -0.5), make(0.9, -0.25), make(0.1, None)]
    found = {one.judgement: one for one in group(ones)}
    assert {name: one.count for name, one in found.items()} == {"improved": 1, "missed": 0, "wasted": 2, "spared": 0}
    assert found["wasted"].regret == 0.75
    assert found["wasted"].parts == (("tokens", 1.0),)


def test_solution_is_explained_as_it_was_decided() -> None:
    """Each step from what was known before it: the numbers are those that the router had."""
    head, trace = make_head(), Trace(Problem("p", "1 + 2"), Limits())
    numbers = []
    for log_probability in (-0.5, -3.0):
        draft = make_draft(log_probability)
        numbers.append(head.probability(trace, draft))
        target = Step("target", "3", 1, Cost(), "separator")
        trace.add(Decision(target, draft, target, advantage=0.5))
    found = explain_solution(head, trace, 0.5)
    assert [one.score for one in found] == numbers
    assert [one.text for one in found] == ["12", "12"]
    assert [one.advantage for one in found] == [0.5, 0.5]
    assert dict(found[1].parts).keys() == set(FEATURES)


def test_states_are_explained_by_their_features() -> None:
    head = make_head()
    states = make_states(MadeUp(), 1)
    found = explain_states(head, QUESTION, states, 0.5)
    expected = head.probabilities(features_of(QUESTION, states))
    assert [one.score for one in found] == pytest.approx(expected.tolist())
    assert [one.advantage for one in found] == [one.advantage for one in states]


# --- the command


@pytest.fixture
def head_file(tmp_path: Path) -> Path:
    save(make_head(taus=TAUS), tmp_path / "head.safetensors")
    return tmp_path / "head.safetensors"


def make_run(folder: Path) -> Path:
    return write_run(folder / "run", questions(20))


def test_command_explains_a_run(tmp_path: Path, head_file: Path) -> None:
    """In sum over all problems, and step by step for those that are asked for."""
    folder = make_run(tmp_path)
    arguments = ("explain", str(folder), "--head", str(head_file), "--tau", "0.5")
    found = run(*arguments)
    assert found.code == 0
    for word in ("100 steps", "improved:", "missed:", "wasted:", "spared:", "regret"):
        assert word in found.out
    chosen = run(*arguments, "--ids", "3,7", "--top", "2")
    assert "10 steps" in chosen.out
    assert "problem 3" in chosen.out
    assert chosen.out.count("oracle: advantage") == 10
    assert ESCAPE not in found.stdout + chosen.stdout


def test_command_asks_the_head_of_the_models_of_the_run(tmp_path: Path) -> None:
    found = run("explain", str(make_run(tmp_path)))
    assert found.code == 0
    assert "head universal" in found.out


def test_command_gives_json(tmp_path: Path, head_file: Path) -> None:
    folder = make_run(tmp_path)
    found = run("explain", str(folder), "--head", str(head_file), "--tau", "0.4", "--json")
    assert len(found.records) == 100
    for record in found.records:
        assert record["decision"] == ("escalate" if record["score"] > 0.4 else "accept")
        assert record["parts"].keys() == set(FEATURES)


def test_command_explains_a_problem(head_file: Path) -> None:
    """Solved now by the scripted models: each step with its text, its probability and tau."""
    arguments = ("explain", QUESTION, "--pair", "scripted", "--head", str(head_file), "-q")
    found = run(*arguments, "--tau", "0.0")
    assert found.code == 0
    assert "head tiny, tau = 0" in found.out
    assert "  1  escalated  P 0." in found.out
    assert "37 * 12" in found.out
    records = run(*arguments, "--tau", "1", "--json").records
    assert {record["decision"] for record in records} == {"accept"}
    assert all(record["judgement"] is None for record in records)
    json.dumps(records, allow_nan=False)


def test_a_step_that_was_stopped_is_told_as_such(head_file: Path) -> None:
    """Its text is only the beginning of a step."""
    arguments = ("explain", QUESTION, "--pair", "scripted", "--head", str(head_file), "-q", "--tau", "0.0", "--early-stop")
    assert "(stopped early)" in run(*arguments).out
    records = run(*arguments, "--json").records
    assert any(record["stopped_early"] and record["decision"] == "escalate" for record in records)


def test_where_steps_are_rated_none_is_stopped_early() -> None:
    """Both models finish each, and that is said."""
    found = run("explain", "5 + 6", "--tau", "0.0", "--early-stop", "--prm", "builtin:prm")
    assert found.code == 0
    assert "--early-stop changes nothing" in flat(found.err)
    assert "stopped early" not in found.out


def test_command_asks_the_reward_model_as_the_pair_says(tmp_path: Path) -> None:
    """In another style its rewards are other numbers. Without --prm none is asked."""
    pair = {"draft": "builtin:draft", "target": "builtin:target", "prm": "builtin:prm"}
    asked = ("explain", "What is 487 * 629 - 95 * 38?", "--json", "-q")
    prm = ("--prm", "builtin:prm")
    unrated = [record["advantage"] for record in run(*asked).records]
    as_told, otherwise = (
        [
            record["advantage"]
            for record in run(*asked, *prm, "--pair", "mine", env=pair_named_mine(tmp_path, **pair, prm_style=style)).records
        ]
        for style in ("steps", "turns")
    )
    assert set(unrated) == {None}
    assert None not in {*as_told, *otherwise}
    assert as_told != otherwise


@pytest.mark.parametrize("named", ["folder", "folder/typo", "runs/typo"])
def test_a_folder_without_a_run_is_no_problem(tmp_path: Path, named: str) -> None:
    """A mistyped run is not sent to the models as if it were something to solve."""
    (tmp_path / "folder").mkdir()
    found = run("explain", named, "--pair", "scripted", cwd=tmp_path)
    assert (found.code, "no run in this folder" in found.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--tau", "x"], 2, "--tau"),
        (["--tau", "0.5", "--ids", "99"], 2, "no problem has the id '99'"),
        (["--tau", "0.5", "--head", "nowhere.safetensors"], 2, "nowhere.safetensors"),
    ],
)
def test_what_cannot_be_explained_is_said(
    tmp_path: Path, head_file: Path, arguments: list[str], code: int, reason: str
) -> None:
    found = run("explain", str(make_run(tmp_path)), "--head", str(head_file), *arguments)
    assert found.code == code
    assert reason in flat(found.err)
    assert "Traceback" not in found.err
