"""Law 8: before thinking, quick answers leave no trace in the text.

If the answers never agree, the text is that of the target, which thinks. If they always agree, it is that of the draft, which
does not think. Then `--think auto` itself: who may be a draft or a target, what it is refused with, and how it is shown.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from altered_gguf import alter, entries
from cli import assert_refused, flat, run, served
from commands import bench, typed
from faults import rows_of, write_problems
from gguf import GGUFValueType as Kind
from hash_language import HashBackend, hash_engines, solve, texts
from writing import make_engine

from arbitrage_cli import open_pair
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.routing.checker import Checker
from arbitrage_cli.types import Fields, Grade, Limits, ModelRole, Problem, RoleLimits, Thinking, Trace

QUICK = Limits(max_steps=30, max_tokens=600, max_step_tokens=40, thinking=Thinking(False))
LIMITS = RoleLimits(QUICK, replace(QUICK, thinking=Thinking(True, 60)), QUICK)
PROBLEMS = [Problem(str(number), f"question {number}") for number in range(8)]
SAMPLED = Sampler(temperature=0.8, seed=3)


class Verdict:
    """A grader with the same grade for all solutions."""

    def __init__(self, *, is_same: bool) -> None:
        self._is_same = is_same

    def grade(self, text: str, gold: Fields) -> Grade:
        return Grade("correct" if self._is_same else "incorrect", text, "")


def engines(sampler: Sampler, concurrency: int) -> dict[ModelRole, Engine]:
    made = hash_engines(sampler, num_sequences=concurrency)
    backend = HashBackend("check", num_sequences=concurrency)
    return {**made, "check": make_engine("check", backend, sampler)}


def solved(sampler: Sampler, concurrency: int, order: tuple[ModelRole, ...], *, is_same: bool) -> Mapping[str, Trace]:
    checker = Checker(lambda text: text, Verdict(is_same=is_same), LIMITS, order)
    how: dict[str, Any] = {"limits": LIMITS.target, "scorer": checker, "speculates": True, "concurrency": concurrency}
    return solve(engines(sampler, concurrency), PROBLEMS, "agree", **how)


def alone(sampler: Sampler, role: ModelRole) -> Mapping[str, Trace]:
    return solve(engines(sampler, 1), PROBLEMS, role, limits=LIMITS.of(role))


@pytest.mark.parametrize("order", [("draft", "draft"), ("draft", "check"), ("check", "draft")], ids="-".join)
@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("sampler", [Sampler(), SAMPLED], ids=["greedy", "sampled"])
def test_answers_that_never_agree_leave_the_targets_text(
    sampler: Sampler, concurrency: int, order: tuple[ModelRole, ...]
) -> None:
    found = solved(sampler, concurrency, order, is_same=False)
    assert all(trace.check and not trace.check.agrees and trace.thoughts for trace in found.values())
    assert texts(found) == texts(alone(sampler, "target"))


@pytest.mark.parametrize("order", [("draft", "draft"), ("draft", "check"), ("check", "draft")], ids="-".join)
@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("sampler", [Sampler(), SAMPLED], ids=["greedy", "sampled"])
def test_answers_that_always_agree_leave_the_drafts_text(
    sampler: Sampler, concurrency: int, order: tuple[ModelRole, ...]
) -> None:
    found = solved(sampler, concurrency, order, is_same=True)
    kept = {name: trace for name, trace in found.items() if trace.check and trace.check.agrees}
    assert len(kept) > 1  # a solution that was cut off is no answer
    expected = texts(alone(sampler, "draft"))
    assert texts(kept) == {name: expected[name] for name in kept}
    assert not any(trace.thoughts for trace in kept.values())


def test_the_draft_that_speculates_for_thoughts_has_their_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is opened anew: its quick prompt ends where an answer begins."""
    opened: list[bool | None] = []
    open_in = Engine.open

    def noted(engine: Engine, slot: int, problem: Problem, *rest: object) -> None:
        if engine.unit_costs and engine.card.name == "draft":
            opened.append(problem.thinks)
        open_in(engine, slot, problem, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "open", noted)
    solved(Sampler(), 1, ("draft", "draft"), is_same=False)
    assert opened == [False, False, True] * len(PROBLEMS)


# --- the option

BUILT_IN: dict[str, Any] = {"draft": "builtin:target", "target": "builtin:thinking-target"}
MODELS_TYPED = ("--draft", "builtin:target", "--target", "builtin:thinking-target")
SUM = "What is 37 * 12 - 95?"


@pytest.fixture
def thinker(tiny: Mapping[str, Path], tmp_path: Path) -> str:
    """A model whose chat template has a switch for thinking."""
    template = str(entries(tiny["draft"])["tokenizer.chat_template"][1])
    switch = "{% if enable_thinking | default(true) %}<think>\n{% endif %}{# until </think> #}"
    return str(
        alter(tiny["draft"], tmp_path / "thinker.gguf", {"tokenizer.chat_template": (Kind.STRING, template + switch)})
    )


@pytest.mark.parametrize("role", ["draft", "target"])
def test_one_model_fills_both_roles_and_thinks_if_its_quick_answers_state_nothing(thinker: str, role: str) -> None:
    named: dict[str, Any] = {role: thinker}
    with open_pair(**named, think="auto", max_tokens=40, threads=1) as pair:
        solution = pair.solve("1 + 1")
        alone = [pair.solve("1 + 1", think=think) for think in (True, False)]
    assert solution.check
    assert not solution.check.agrees
    assert {one.model for one in solution.check.solutions} == {"draft"}
    assert (solution.thinking, solution.text) == (alone[0].thinking, alone[0].text)
    assert solution.thinking
    assert (alone[1].thinking, alone[1].check) == ("", None)


def test_equal_quick_answers_are_kept_and_the_target_thinks_about_the_others() -> None:
    with open_pair(**BUILT_IN, check="builtin:thinking-draft", think="auto", threads=1) as pair:
        solutions = list(pair.solve_many([SUM, "What is 23 * 47 - 88?", "What is 908 - 719 + 84 * 91?"]))
    for solution in solutions:
        assert solution.check
        assert bool(solution.thinking) is not solution.check.agrees
        assert {step.kept.model for step in solution.steps} == {"draft" if solution.check.agrees else "target"}
    assert solutions[0].check
    assert solutions[0].check.answers == {"draft": "349", "check": "349"}


def test_bench_compares_thinking_always_never_and_where_it_is_needed_and_resumes(quick_path: Path) -> None:
    write_problems(quick_path / "problems.jsonl", ("1 + 2", "37 * 12 - 95"))
    for _ in range(2):
        made = bench(quick_path, typed(**BUILT_IN, think="auto"))
        assert [route.policy.name for route in made.run.routes] == ["target", "draft", "agree"]
    rows = rows_of(quick_path / "run")
    assert len(rows) == 6
    thought = {row["policy"]: any(step["phase"] == "think" for step in row["steps"]) for row in rows}
    assert (thought["target"], thought["draft"]) == (True, False)


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (("solve", "--draft", "builtin:target", "--target", "builtin:target"), "--think"),
        (("solve", "--target", "builtin:thinking-target"), "--think"),
        (("solve", *MODELS_TYPED, "--policy", "arbitrage"), "--policy"),
        (("solve", *MODELS_TYPED, "--policy", "speculative"), "--policy"),
        (("bench", *MODELS_TYPED, "--dataset", "builtin", "--task", "free"), "policy agree"),
        (("chat", *MODELS_TYPED), "--think"),
        (("advise", *MODELS_TYPED), "--think"),
        (("collect", *MODELS_TYPED, "--dataset", "builtin", "--reward", "rollout"), "--think"),
    ],
    ids=["does not think", "always thinks", "routing", "speculation", "free", "chat", "advise", "collect"],
)
def test_what_auto_cannot_do_is_refused(arguments: tuple[str, ...], place: str, tmp_path: Path) -> None:
    question = [SUM] if arguments[0] == "solve" else []
    assert_refused(run(*arguments, "--think", "auto", *question, cwd=tmp_path), 2, place)


def test_a_policy_of_a_settings_file_is_not_used_and_noted(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('policy = "arbitrage"\n')
    shown = run("solve", *MODELS_TYPED, "--think", "auto", "--config", "config.toml", SUM, cwd=tmp_path)
    assert shown.code == 0, shown.err
    assert "arbitrage is not used with --think auto" in flat(shown.err)
    assert shown.out.strip() == "349"


@pytest.mark.parametrize(
    ("effort", "model", "thinks"), [("none", "draft", False), ("auto", "agree", None), ("high", "target", True)]
)
def test_a_request_chooses_thinking(effort: str, model: str, thinks: bool | None) -> None:
    with served(models=(*MODELS_TYPED, "--think", "auto")) as (_, client):
        body = {"messages": [{"role": "user", "content": SUM}], "reasoning_effort": effort}
        answered = client.post("/chat/completions", json=body).json()
    assert answered["model"] == model
    message = answered["choices"][0]["message"]
    assert thinks is None or ("reasoning_content" in message) is thinks
    assert "349" in message["content"]
