"""Made-up runs: rows as a benchmark writes them, of models that are a few numbers and random draws.

Every problem has a difficulty. The target solves more of them than the draft and costs more for each token. A policy
decides by a number that is higher before the draft makes a mistake.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from hypothesis import strategies as st

from arbitrage_cli.app.asking.locate import card_of_run
from arbitrage_cli.evaluation import metrics
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.model_files.pairs import router_file
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import Route
from arbitrage_cli.routing.router import load
from arbitrage_cli.runs.folder import RunFolder, encode
from arbitrage_cli.runs.records import BENCH
from arbitrage_cli.runs.results import Result
from arbitrage_cli.runs.rows import AttemptRow, read_row
from arbitrage_cli.runs.run import Run, read_run
from arbitrage_cli.types import Check, CheckedSolution, Cost, Decision, Finished, Grade, Phase, RoleLimits, Step

DRAFT_TOKEN, TARGET_TOKEN = 0.02, 0.07  # seconds of one decoded token
DRAFT_READ, TARGET_READ = 0.002, 0.012  # seconds of one prefilled token
GREEDY = Sampler()

MODELS: Sequence[tuple[str, str, float, float]] = (
    ("draft", "made-up 0.5B", DRAFT_TOKEN, DRAFT_READ),
    ("target", "made-up 3B", TARGET_TOKEN, TARGET_READ),
)

ROUTER = "builtin:builtin"
IDENTITY = "0123456789abcdef"

INSIGHT = {"logprob": 0.7, "random": 0.0}
"""How far a policy's number depends on whether the draft is right; 1 for the others."""

Column = tuple[str, float | str | None]
"""A policy and its tau, as a row has it."""

COLUMNS: Sequence[Column] = (
    *(("target", None), ("draft", None)),
    *(("entropy", 0.3), ("entropy", 0.5), ("entropy", 0.8), ("random", 0.3), ("random", 0.6)),
)


@dataclass(frozen=True)
class MadeUp:
    """The contents of a run folder."""

    run: dict[str, Any]
    rows: list[dict[str, Any]]


def make_run(
    count: int = 30,
    *,
    columns: Sequence[Column] = COLUMNS,
    samples: int = 1,
    levels: int = 5,
    drift: float = 0.15,
) -> MadeUp:
    """A run of `count` problems. `drift` is how much clock times vary by chance; at 0 they are exactly tokens x cost."""
    rows = [
        make_row(index, sample, column, levels=levels, drift=drift)
        for index in range(count)
        for sample in range(samples)
        for column in columns
    ]
    return run_of(rows, columns, samples)


def run_of(rows: list[dict[str, Any]], columns: Iterable[Column] | None = None, samples: int = 1) -> MadeUp:
    """A finished run of these rows: of their problems, and unless given of their columns."""
    named = columns or dict.fromkeys((row["policy"], row["tau"]) for row in rows)
    return MadeUp(describe({row["id"]: row["level"] for row in rows}, named, samples), rows)


def describe(levels: Mapping[str, Any], columns: Iterable[Column] = COLUMNS, samples: int = 1) -> dict[str, Any]:
    """run.json of a made-up run of these problems, each with its level, and what its policies need."""
    columns = list(columns)
    policies = [POLICIES[policy] for policy, _ in columns]
    has_router = any(policy.needs_router for policy in policies)
    prm: dict[str, Any] = {"prm": {"name": "made-up PRM.gguf"}} if any(one.reward for one in policies) else {}
    return {
        "schema": 4,
        "id": IDENTITY,
        "kind": "bench",
        "tool": "0.0.0",
        "created": "2026-11-25T10:00:00Z",
        "asked": {"command": ["arbitrage", "bench", "--dataset", "made-up"], "options": {}, "typed": []},
        "decided": {
            "models": {
                role: {
                    "name": f"{name}.gguf",
                    "sha256": "1" * 64,
                    "threads": 2,
                    "costs": asdict(UnitCosts((token,) * 5, read)) | {"batches": [token] * 5},
                }
                for role, name, token, read in MODELS
            }
            | prm,
            "routes": [{"policy": policy, "tau": tau, "tau_name": None, "stops_early": False} for policy, tau in columns],
            "router": {"name": "builtin", "sha256": load(router_file(ROUTER)).sha256} if has_router else None,
            "tau_costs": None,
            "price": None,
            "concurrency": 1,
            "settings": settings(GREEDY if samples == 1 else Sampler(0.7)),
            "machine": {"cpu": "made-up processor", "gpu": None, "llama_cpp_python": "0.3.36"},
            "notes": [],
        },
        "places": {"router": ROUTER} if has_router else {},
        "dataset": {"name": "made-up", "revision": None, "sha256": "0" * 64, "count": len(levels)},
        "levels": dict(levels),
        "samples": samples,
        "grader": "1",
        "loaded": {
            role: {"name": name, "description": f"{name} Q4_K_M", "chat_template_sha256": None}
            for role, name, _, _ in MODELS
        },
    }


def settings(sampler: Sampler = GREEDY, **changed: Any) -> dict[str, Any]:
    """The settings of a run, as in run.json."""
    return {
        "task": "math",
        "step_separator": "\n\n",
        "step_min_chars": 0,
        "think_min_chars": None,
        "system": "",
        "chat_template_kwargs": {},
        "sampler": asdict(sampler),
        "limits": asdict(RoleLimits()),
        "reward": None,
        "kv_type": "auto",
        "gpu_layers": "auto",
        "flash_attention": "auto",
        **changed,
    }


def as_run(run: Mapping[str, Any]) -> Run:
    """A made-up run.json, as the program reads it."""
    return read_run(encode(run))


def make_row(index: int, sample: int, column: Column, *, levels: int = 5, drift: float = 0.15) -> dict[str, Any]:
    """The row of one attempt. The problem depends on its index, its steps on index and sample, the clock on all of it."""
    policy, tau = column
    problem = random.Random(f"1/{index}")
    first, second = problem.randint(11, 99), problem.randint(3, 19)
    difficulty = problem.random()
    steps = [
        _step(random.Random(f"1/{index}/{sample}/{number}"), difficulty, policy, tau, first, second)
        for number in range(2 + int(5 * difficulty) + problem.randint(0, 2))
    ]
    is_right = min(step.pop("is_right") for step in steps)
    answer = first * second if is_right else first * second + problem.choice([-10, 10, 1])
    steps[-1] |= {"text": f"So the answer is \\boxed{{{answer}}}.", "stop": "end"}
    timing = _timing(steps)
    clock = random.Random(f"1/{index}/{sample}/{policy}/{tau}".encode("utf-8", "surrogatepass"))
    seconds = sum(
        part.get(name, 0.0) for part in timing.values() for name in ("prefill_seconds", "decode_seconds", "seconds")
    )
    rest = clock.random() * 0.02 if drift else 0.0
    return {
        "schema": 4,
        "run": IDENTITY,
        "id": f"made-up-{index:04}",
        "sample": sample,
        "policy": policy,
        "tau": tau,
        "status": "done",
        "level": 1 + int(difficulty * levels) if levels else None,
        "problem": f"A shelf holds {first} boxes with {second} bolts each. How many bolts are on the shelf?",
        "gold": {"answer": str(first * second)},
        "tau_name": None,
        "text": "".join(step["text"] for step in steps),
        "answer": str(answer),
        "stop": "end",
        "error": None,
        "grade": {
            "value": "correct" if is_right else "incorrect",
            "answer": str(answer),
            "explanation": "the same number" if is_right else f"{answer} is not {first * second}",
        },
        "steps": steps,
        "acceptance_rate": None,
        "token_acceptance_rate": None,
        "seconds": seconds,
        "target_alone_seconds_estimate": None,
        "wall_seconds": seconds * clock.lognormvariate(0.0, drift) + rest,
        "timing": timing,
    }


def failed(row: Mapping[str, Any]) -> dict[str, Any]:
    timing = dict.fromkeys(("draft", "target"), asdict(Cost()))
    return {
        **row,
        "status": "error",
        "error": "the context was full",
        "grade": None,
        "answer": None,
        "steps": [],
        "timing": timing,
    }


def unscored(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "grade": {"value": "unscored", "answer": None, "explanation": "no answer was found"}}


def parsed(row: Mapping[str, Any]) -> AttemptRow:
    made = read_row(encode(row), BENCH)
    assert isinstance(made, AttemptRow)
    return made


def row_of(finished: Finished) -> AttemptRow:
    """The row of a solution, read as from a file."""
    facts = {
        "sample": 0,
        "level": None,
        "gold": {"answer": "4"},
        "grade": Grade("correct", "4", "the same number"),
        "answer": "4",
        "wall_seconds": 1.0,
    }
    return parsed(AttemptRow.of(finished, Route(POLICIES["entropy"], 1.0), {}, **facts).to_dict())


def results(rows: Iterable[Mapping[str, Any]]) -> Iterator[Result]:
    return map(Result.of, map(parsed, rows))


def figures(run: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], **options: Any) -> dict[str, Any]:
    """The figures of a run with these rows, as JSON has them."""
    return typed_figures(run, rows, **options).to_json()


def typed_figures(run: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], **options: Any) -> metrics.RunFigures:
    described = as_run(run)
    return metrics.figures(described, results(rows), card_of_run(described), **options)


def write_run_folder(folder: Any, made: MadeUp) -> None:
    with RunFolder(folder) as writer:
        writer.save_run(as_run(made.run))
        for row in made.rows:
            writer.append(parsed(row))


durations = st.just(0.0) | st.floats(1e-9, 50)  # a clock counts nanoseconds
costs = st.builds(Cost, *(kind for _ in range(3) for kind in (st.integers(0, 500), durations)), st.integers(0, 100))


phases = st.sampled_from(get_args(Phase))
compared = st.builds(Step, st.sampled_from(["draft", "check"]), st.just("c"), st.integers(1, 100), costs, st.just("end"))
rollouts = st.builds(Step, st.just("target"), st.just("r"), st.integers(1, 100), costs, st.just("end"))
solutions = st.builds(
    CheckedSolution,
    st.sampled_from(["draft", "check"]),
    st.none() | st.just("4"),
    st.lists(compared),
    st.integers(0, 2),
    st.booleans(),
)
checks = st.none() | st.builds(Check, st.lists(solutions), st.booleans())
"""What the policy `agree` compared, with the steps of the solutions that were not kept."""


@st.composite
def decisions(draw: st.DrawFn) -> Decision:
    """Any decision that a flow can make: one model alone, accepted, escalated, stopped early, or both written."""
    phase = draw(phases)
    draft = Step("draft", "d", draw(st.integers(1, 100)), draw(costs), "separator", phase=phase)
    target = Step(
        "target", "t", draw(st.integers(1, 100)), draw(costs), "separator", speculation_cost=draw(costs), phase=phase
    )
    kinds = [
        Decision(draft, draft=draft),
        Decision(target, target=target),
        Decision(draft, draft=draft, score=0.1),
        Decision(target, draft=draft, target=target, score=0.9),
        Decision(target, draft=replace(draft, stop="early"), target=target, score=0.9),
        Decision(draft, draft=draft, target=target),
    ]
    return draw(st.sampled_from(kinds))


def _step(
    dice: random.Random, difficulty: float, policy: str, tau: float | str | None, first: int, second: int
) -> dict[str, Any]:
    draft_tokens, target_tokens = dice.randint(18, 60), dice.randint(18, 60)
    draft_is_right = dice.random() > 0.34 * difficulty
    target_is_right = dice.random() > 0.06 * difficulty
    uncertainty, chance = dice.random() * (0.55 if draft_is_right else 1.3), dice.random()
    draft = _written("draft", f"{first} boxes hold {first} * {second} bolts in all.\n\n", draft_tokens, DRAFT_TOKEN)
    target = _written("target", f"Each of the {first} boxes holds {second} bolts.\n\n", target_tokens, TARGET_TOKEN)
    if policy in ("draft", "target", "speculative"):
        kept, is_right = (draft, draft_is_right) if policy == "draft" else (target, target_is_right)
        return kept | _decided(None, None, None, is_right=is_right)
    if policy == "oracle":
        return _chosen_by_oracle(draft, target, draft_is_right=draft_is_right, target_is_right=target_is_right)
    insight = INSIGHT.get(policy, 1.0)
    number = insight * uncertainty + (1 - insight) * chance
    if number > float(tau if tau is not None else "inf"):
        return target | _decided("escalate", number, draft, is_right=target_is_right)
    return draft | _decided("accept", number, None, is_right=draft_is_right)


def _chosen_by_oracle(
    draft: dict[str, Any], target: dict[str, Any], *, draft_is_right: bool, target_is_right: bool
) -> dict[str, Any]:
    advantage = float(target_is_right) - float(draft_is_right)
    kept, discarded = (target, draft) if advantage > 0 else (draft, target)
    decision = "escalate" if advantage > 0 else "accept"
    is_right = draft_is_right or target_is_right
    return kept | _decided(decision, None, discarded, is_right=is_right) | {"advantage": advantage}


def slow_down(row: dict[str, Any], factor: float) -> None:
    """Multiply all times of a row in place."""
    costs = [one["cost"] for step in row["steps"] for one in (step, step["discarded"]) if one]
    for cost in (*costs, *row["timing"].values()):
        cost |= {name: factor * value for name, value in cost.items() if name.endswith("seconds")}
    row["wall_seconds"] *= factor


def _written(model: str, text: str, tokens: int, seconds_per_token: float) -> dict[str, Any]:
    made = {"model": model, "phase": "answer", "text": text, "tokens": tokens, "stop": "separator"}
    cost = {"decode_tokens": tokens, "decode_seconds": tokens * seconds_per_token}
    return made | {"seconds": cost["decode_seconds"], "cost": cost, "speculation_cost": None}


def _decided(
    decision: str | None, number: float | None, discarded: Mapping[str, Any] | None, *, is_right: bool
) -> dict[str, Any]:
    decided = {"decision": decision, "score": number, "advantage": None, "discarded": discarded}
    return decided | {"is_right": is_right}


def _timing(steps: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each model decodes what it wrote, and reads the question and what the other one wrote before it is next called.

    Adds the reading to the steps.
    """
    timing: dict[str, dict[str, Any]] = {}
    for model, read in (("draft", DRAFT_READ), ("target", TARGET_READ)):
        unread, total = 60, Cost()
        for step in steps:
            for own in (one for one in (step, step["discarded"]) if one and one["model"] == model):
                own["cost"] |= {"prefill_tokens": unread, "prefill_seconds": unread * read} if unread else {}
                own["seconds"] += unread * read
                total += Cost(**own["cost"])
                unread = 0
            if step["model"] != model:
                unread += step["tokens"]
        timing[model] = asdict(total)
    decided = sum(step["score"] is not None for step in steps)
    return {**timing, "router": {"seconds": decided * 0.0005}}
