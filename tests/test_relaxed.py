"""Law 8: relaxed acceptance writes what a token-by-token reference writes, at any costs and concurrency."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from cli import QUESTION, assert_refused, run, served
from hash_language import (
    CHEAP_BATCHES,
    CHEAP_DRAFT,
    HashBackend,
    Wavering,
    events_of,
    finished_of,
    hash_engines,
    planner,
    random_costs,
    solve,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_runs import row_of
from made_up_tuning import FAST_READER, pretend, unit_costs
from tiny_gguf import write_draft, write_recurrent, write_target

from arbitrage_cli import open_pair
from arbitrage_cli.display.wording import difference
from arbitrage_cli.errors import ContextFullError, UsageError
from arbitrage_cli.inference.acceptance import Calibration
from arbitrage_cli.inference.backend import Backend, LoadOptions
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.kv_cache import KvCache
from arbitrage_cli.inference.llama.backend import LlamaBackend
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.speculation import Drafting, Planner
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.model_files.pairs import find_files
from arbitrage_cli.runs.records import tally
from arbitrage_cli.types import Difference, Limits, ModelRole, Problem, Step, Trace

PROBLEMS = [Problem(str(number), f"question {number}" * (1 + number % 3)) for number in range(10)]
ARITHMETIC = [Problem(str(number), f"Evaluate {number}*{100 - number}-{number * 3}.") for number in range(31, 79, 6)]
LIMITS = Limits(max_tokens=100, max_step_tokens=40)
TAUS = (0.0, 2.0, 6.0, math.inf)
COSTS = (None, CHEAP_BATCHES, unit_costs(1.0, 1.5, 4.0), unit_costs(1.0, 4.0, 16.0))

Written = Mapping[str, tuple[str, Sequence[tuple[int, float]]]]
"""The text of each problem's solution, and the position and the score of each kept difference."""


def written_one_by_one(
    draft: Backend, target: Backend, problem: Problem, tau: float, max_tokens: int
) -> tuple[str, list[tuple[int, float]]]:
    """The reference: both models read every token, and at each position the rule chooses one of their two tokens."""
    prompts = [(model, KvCache(model).prompt_ids(problem)) for model in (draft, target)]
    for model, prompt in prompts:
        model.read(0, 0, prompt[:-1])
    written: list[int] = []
    kept: list[tuple[int, float]] = []
    while len(written) < max_tokens:
        logits = [
            model.decode([0], [len(prompt) - 1 + len(written)], [written[-1] if written else prompt[-1]])[0].copy()
            for model, prompt in prompts
        ]
        drafted, own = (int(row.argmax()) for row in logits)
        score = float(logits[1][own]) - float(logits[1][drafted])
        ends = target.tokenizer.is_end(own) or target.tokenizer.is_end(drafted)
        if drafted != own and not ends and tau > 0 and score <= tau:
            kept.append((len(written), score))
            own = drafted
        if target.tokenizer.is_end(own):
            break
        written.append(own)
    for model, _ in prompts:
        model.drop(0, 0)
    return b"".join(map(target.tokenizer.piece, written)).decode("utf-8", errors="replace"), kept


def differences_of(trace: Trace) -> list[tuple[int, float]]:
    """The kept differences, by their positions in the solution."""
    found: list[tuple[int, float]] = []
    num_before = 0
    for decision in trace.decisions:
        found += [(num_before + one.position, one.score) for one in decision.kept.differences]
        num_before += decision.kept.num_tokens
    return found


def references(draft: Backend, target: Backend, problems: Sequence[Problem], tau: float) -> Written:
    return {one.id: written_one_by_one(draft, target, one, tau, LIMITS.token_limit) for one in problems}


def toy_references(tau: float, problems: Sequence[Problem] = PROBLEMS) -> Written:
    return references(Wavering("draft"), HashBackend("draft"), problems, tau)


def written(traces: Mapping[str, Trace]) -> Written:
    return {name: (trace.text, differences_of(trace)) for name, trace in traces.items()}


def engines(costs: UnitCosts | None = CHEAP_BATCHES, concurrency: int = 1) -> dict[ModelRole, Engine]:
    return hash_engines(same_model=True, make_draft=Wavering, costs=costs, num_sequences=concurrency)


def relaxed(
    by: Mapping[ModelRole, Engine], tau: float, problems: Sequence[Problem] = PROBLEMS, concurrency: int = 1
) -> dict[str, Trace]:
    return solve(by, problems, "relaxed", tau, limits=LIMITS, concurrency=concurrency, speculates=True)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("concurrency", [1, 8])
def test_relaxed_is_the_reference(tau: float, concurrency: int) -> None:
    expected = toy_references(tau)
    for costs in COSTS:
        assert written(relaxed(engines(costs, concurrency), tau, concurrency=concurrency)) == expected
    assert any(kept for _, kept in expected.values()) is (tau > 0)


@settings(max_examples=15)
@given(st.sampled_from([1.0, 3.0]), st.integers(0, 5), st.integers(1, 24), st.sampled_from([1, 8]))
def test_the_number_of_drafted_tokens_is_invisible(tau: float, seed: int, most: int, concurrency: int) -> None:
    def plan(planner: Planner, draft: UnitCosts | None, room: int, calibration: Calibration) -> Drafting:
        return Drafting(calibration, [0.0] * (1 + max(1, min(most, room))), 1.0, next_chance=1.0)

    some = PROBLEMS[:4]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Planner, "plan_relaxed", plan)
        made = relaxed(engines(random_costs(seed), concurrency), tau, some, concurrency)
    assert written(made) == toy_references(tau, some)


def test_relaxed_0_is_the_target_alone() -> None:
    alone = solve(engines(), PROBLEMS, "target", limits=LIMITS)
    made = relaxed(engines(), 0.0)
    assert {name: trace.text for name, trace in made.items()} == {name: trace.text for name, trace in alone.items()}


def test_drafted_tokens_save_batches() -> None:
    steps: list[Step] = [decision.kept for trace in relaxed(engines(), 2.0).values() for decision in trace.decisions]
    batches = sum(step.cost.decode_tokens + step.cost.verify_batches for step in steps)
    assert 2 * batches < sum(step.num_tokens for step in steps)
    assert all(step.speculation_cost.decode_tokens > 0 for step in steps)


@pytest.mark.parametrize(("batches", "pays"), [((1.0, 2.7, 2.9, 3.9, 5.8), True), ((1.0, 2.0, 4.0, 8.0, 16.0), False)])
def test_more_tokens_are_drafted_if_that_pays(batches: tuple[float, ...], *, pays: bool) -> None:
    """A batch of two may cost nearly as much as one of four. Where each token costs as much, the draft chooses one at a time."""
    drafting = Planner(UnitCosts(batches, 0.1)).plan_relaxed(UnitCosts((0.1,) * len(batches), 0.0), 24, Calibration())
    num_drafted = next(count for count in range(1, 25) if not drafting.should_continue(0.999))
    assert (num_drafted > 4) is pays
    assert pays or num_drafted == 1


def test_a_draft_whose_context_is_full_ends_the_solution() -> None:
    problem, room = PROBLEMS[1], 15
    small = Wavering("draft", context_size=len(KvCache(Wavering("draft")).prompt_ids(problem)) + room)
    made = engines()
    made["draft"] = Engine("draft", KvCache(small), Sampler(), planner=planner(CHEAP_DRAFT))
    (trace,) = relaxed(made, 2.0, [problem]).values()
    assert (trace.stop, trace.num_tokens) == ("context", room)
    text, _ = written_one_by_one(Wavering("draft"), HashBackend("draft"), problem, 2.0, room)
    assert trace.text == text


def test_an_error_of_the_draft_is_the_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Wavering.decode

    def fails(backend: Wavering, sequences: Sequence[int], *arguments: Any, **options: Any) -> Any:
        if 1 in sequences:
            raise ContextFullError("full", "")
        return real(backend, sequences, *arguments, **options)

    monkeypatch.setattr(Wavering, "decode", fails)
    how: dict[str, Any] = {"limits": LIMITS, "concurrency": 2, "speculates": True}
    ended = finished_of(events_of(engines(concurrency=2), PROBLEMS[:2], "relaxed", 1.0, **how))
    assert sorted(type(one.error).__name__ for one in ended) == ["ContextFullError", "NoneType"]


def test_rows_have_the_differences() -> None:
    events = events_of(engines(), PROBLEMS, "relaxed", 3.0, limits=LIMITS, speculates=True)
    for event in finished_of(events):
        row = row_of(event)
        live = [decision.kept.differences for decision in event.trace.decisions]
        assert [decision.kept.differences for decision in row.decisions] == live
        assert tally(row.decisions).kept_differences == sum(map(len, live))
        assert all(0 < one.score <= 3.0 and one.text != one.target_text for kept in live for one in kept)


def test_a_difference_is_one_line_of_two_texts_that_differ() -> None:
    shown = difference(Difference(0, ".\n", ".\n\n\x1b[2J", 0.25))
    assert "\n" not in shown
    assert "\x1b" not in shown
    kept, _, own = shown.partition(" instead of ")
    assert kept != own.partition(" (")[0]


# --- in the commands

SOLVED = ("--policy", "relaxed@4", "Evaluate 67*33-201.")


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str | None]:
    pretend(tmp_path / "arbitrage" / "tuned.json", FAST_READER)
    return {"XDG_CONFIG_HOME": str(tmp_path)}


def test_solve_keeps_differences_and_shows_them(home: dict[str, str | None]) -> None:
    record = run("solve", *SOLVED, "--json", env=home).record
    assert (record["policy"], record["tau"], record["status"]) == ("relaxed", 4.0, "done")
    assert any("differences" in step for step in record["steps"])
    assert "kept" in run("solve", *SOLVED, env=home).err
    assert "instead of" in run("solve", *SOLVED, "--explain", env=home).err
    same = run("solve", "--policy", "relaxed", "--tau", "4", SOLVED[-1], "--json", env=home).record
    assert same["text"] == record["text"]


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("", ("--policy", "relaxed")),
        ("", ("--policy", "relaxed@-1")),
        ("", ("--policy", "relaxed@")),
        ("--tau", ("--policy", "relaxed@1", "--tau", "2")),
        ("--tau", ("--policy", "relaxed", "--tau", "careful")),
        ("--temperature", ("--policy", "relaxed@1", "--temperature", "0.5")),
        ("--policy", ("--policy", "relaxed@1", "--draft", "http://127.0.0.1:9/v1", "--target", "builtin:target")),
    ],
)
def test_what_it_cannot_do_is_refused_before_models_are_loaded(option: str, arguments: Sequence[str]) -> None:
    ended = run("solve", *arguments, QUESTION)
    assert_refused(ended, 2, option)
    assert "loading" not in ended.err
    assert "-inf" not in ended.err


@pytest.mark.parametrize("write_other", [write_target, write_recurrent])
def test_models_without_shared_token_ids_are_refused_before_costs_are_measured(
    tmp_path: Path, write_other: Callable[[Path], Path]
) -> None:
    draft, other = write_draft(tmp_path / "draft.gguf"), write_other(tmp_path / "other.gguf")
    for models in ((draft, other), (other, draft)):
        named = ("--draft", str(models[0]), "--target", str(models[1]))
        ended = run("solve", *named, "--policy", "relaxed@1", QUESTION, env={"XDG_CONFIG_HOME": str(tmp_path)})
        assert_refused(ended, 2, "--policy")
        assert "measuring" not in ended.err


def test_bench_refuses_samples_and_counts_differences(tmp_path: Path, home: dict[str, str | None]) -> None:
    (tmp_path / "p.jsonl").write_text('{"question": "Evaluate 67*33-201.", "answer": "2010"}\n')
    folder, page = tmp_path / "run", tmp_path / "page.html"
    compared = ("bench", "--policy", "target,relaxed@4", "--dataset", str(tmp_path / "p.jsonl"), "-o", str(folder))
    assert_refused(run(*compared, "--samples", "2", env=home), 2, "--samples")
    target, policy = run(*compared, "--json", "-q", env=home).record["policies"]
    assert (target["differences_mean"], target["tokens_per_call"]) == (None, None)
    assert policy["differences_mean"] > 0
    assert policy["tokens_per_call"] >= 1
    assert run("report", str(folder), "-o", str(page), "-q", env=home).code == 0
    assert "differences kept" in page.read_text()


def test_python_takes_it_by_name_and_tau(home: dict[str, str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home["XDG_CONFIG_HOME"]))
    with open_pair(pair="builtin", threads=1) as pair:
        solution = pair.solve(SOLVED[-1], policy="relaxed", tau=4)
        assert any(decision.kept.differences for decision in solution.steps)
        assert pair.solve(SOLVED[-1], policy="relaxed@4").text == solution.text
        with pytest.raises(UsageError) as raised:
            pair.solve(SOLVED[-1], policy="relaxed", tau=4, temperature=0.5)
        assert raised.value.option == "temperature"
        with pytest.raises(UsageError) as raised:
            pair.solve(SOLVED[-1], policy="relaxed")
        assert raised.value.option == "tau"


def test_serve_and_chat_take_it(home: dict[str, str | None]) -> None:
    messages = [{"role": "user", "content": SOLVED[-1]}]
    with served("--threads", "1", models=("--pair", "builtin"), env=home) as (_, client):
        asked = {"messages": messages, "model": "relaxed@4"}
        record = run("solve", *SOLVED, "--json", env=home).record
        answer = client.post("/chat/completions", json=asked).json()["choices"][0]["message"]["content"]
        assert answer == record["text"].rstrip()
        refused = client.post("/chat/completions", json={**asked, "temperature": 0.5})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "temperature")
        for model in ("relaxed", "relaxed@-1", "relaxed@careful"):
            unknown = client.post("/chat/completions", json={**asked, "model": model})
            assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "model")
            assert "--" not in unknown.json()["error"]["message"]
    lines = ("/policy relaxed@4", SOLVED[-1], "/policy relaxed", "/policy target", "/explain")
    said = run("chat", "--pair", "builtin", stdin="\n".join(lines).encode(), env=home)
    assert said.code == 0, said.err
    assert said.out.startswith(f"{record['answer']}\n")
    assert "policy relaxed needs a tau" in said.err
    num_kept = sum(len(step.get("differences", ())) for step in record["steps"])
    assert said.out.count("instead of") == num_kept > 0


def test_serve_refuses_it_for_models_with_different_vocabularies(tmp_path: Path) -> None:
    models = ("--draft", str(write_draft(tmp_path / "draft.gguf")), "--target", str(write_target(tmp_path / "target.gguf")))
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    with served("--threads", "1", "--policy", "target", models=models, env=env) as (_, client):
        asked = {"messages": [{"role": "user", "content": "a"}], "model": "relaxed@1"}
        error = client.post("/chat/completions", json=asked).json()["error"]
        assert error["param"] == "model"
        assert "vocabular" in error["message"]


# --- the built-in models


@pytest.fixture(scope="module")
def built_in() -> Iterator[dict[ModelRole, Backend]]:
    options = LoadOptions(512, threads=1, num_sequences=8)
    roles: tuple[ModelRole, ...] = ("draft", "target")
    with ExitStack() as stack:
        yield {role: stack.enter_context(closing(LlamaBackend(find_files(f"builtin:{role}")[0], options))) for role in roles}


@pytest.mark.parametrize("concurrency", [1, 8])
def test_relaxed_is_the_reference_on_the_built_in_models(built_in: Mapping[ModelRole, Backend], concurrency: int) -> None:
    expected = references(built_in["draft"], built_in["target"], ARITHMETIC, 4.0)
    by: dict[ModelRole, Engine] = {
        role: Engine(role, KvCache(model), Sampler(), planner=planner(CHEAP_DRAFT if role == "draft" else CHEAP_BATCHES))
        for role, model in built_in.items()
    }
    made = relaxed(by, 4.0, ARITHMETIC, concurrency)
    assert {name: trace.text for name, trace in made.items()} == {name: text for name, (text, _) in expected.items()}
    positions = {name: [at for at, _ in kept] for name, (_, kept) in expected.items()}
    assert {name: [at for at, _ in differences_of(trace)] for name, trace in made.items()} == positions
    assert any(positions.values())
