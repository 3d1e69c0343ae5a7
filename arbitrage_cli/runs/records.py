"""Builds the JSON records of solved problems and the rows of benchmarks.

Other programs read these records, so fields may be added but not renamed.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from arbitrage_cli.errors import ContextFullError
from arbitrage_cli.grading.extract import boxed_answer
from arbitrage_cli.runs.summary import Tally, tally
from arbitrage_cli.stats import rounding
from arbitrage_cli.types import Attribution, Cost, Decision, Finished, Grade, ModelRole, Step, Trace

if TYPE_CHECKING:  # slow to import
    from arbitrage_cli.runs.schema import (
        Attempted,
        ExplainedStep,
        KeptStep,
        Solution,
        Solved,
        Tau,
        Timing,
        Written,
    )

SCHEMA: Literal[1] = 1
"""The schema of rows and run.json. Folders with another schema are rejected."""
BENCH, COLLECT, SOLVE = "bench", "collect", "solve"
"""The kinds of runs, named after the commands that create them. The run.json of a benchmark omits the kind."""

Level = str | int | None

LIMITS: Mapping[str, str] = {"max_tokens": "--max-tokens", "max_steps": "max-steps (a setting)", "context": "--ctx"}
"""Maps the `TraceStop` of a solution that reached a limit to the option that sets the limit."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The settings of a run. `score_is` and `tau` are None if the policy does not route steps."""

    policy: str
    score_is: str | None
    tau: float | None
    temperature: float
    seed: int
    models: Mapping[ModelRole, str] = field(default_factory=dict)  # names given by the user
    descriptions: Mapping[ModelRole, str] = field(default_factory=dict)  # from the model files
    settings: Mapping[str, Any] = field(default_factory=dict)  # all other settings that affect the text
    num_problems: int | None = None  # None if unknown in advance
    num_done: int = 0  # by an earlier command
    tau_name: str | None = None
    answers_follow: bool = False  # the answers are written to the terminal that shows the view
    shows_thoughts: bool = True
    thoughts_tau: float | None = None  # threshold for thoughts if it differs from tau
    concurrency: int = 1
    find_answer: Callable[[str], str | None] = boxed_answer  # finds the answer in a solution
    explain: Callable[[Trace, int], Attribution | None] | None = None  # explains the decision at an index
    bill: Callable[[Finished], tuple[float, float | None] | None] = lambda finished: None  # dollars: spent, target alone

    def answer(self, trace: Trace) -> str | None:
        return self.find_answer(trace.text)


def tau_in_json(tau: float | None) -> "Tau":
    """Return a tau for JSON: a number, "inf", "-inf" or None."""
    if tau is None or math.isfinite(tau):
        return tau
    return "inf" if tau > 0 else "-inf"


def to_json(content: Mapping[str, Any], **options: Any) -> str:
    """Serialize a record as ASCII JSON without NaN. Lone surrogates are replaced with question marks."""
    text = json.dumps(content, allow_nan=False, **options)
    if "\\ud" in text:  # JSON parsers reject lone surrogates, which Python would escape
        clean = json.loads(json.dumps(content, ensure_ascii=False).encode("utf-8", "replace"))
        text = json.dumps(clean, allow_nan=False, **options)
    return text


def record(finished: Finished, run: RunInfo) -> "Solution":
    return {
        **_solved(finished, run),
        "score_is": run.score_is,
        "temperature": run.temperature,
        "seed": run.seed,
        "settings": dict(run.settings),
        "draft": run.models.get("draft"),
        "target": run.models.get("target"),
        "models": dict(run.descriptions.items()),
    }


def _solved(finished: Finished, run: RunInfo) -> "Solved":
    trace = finished.trace
    figures = tally(trace.decisions, finished.reward_cost)
    error = problem_error(finished)
    return {
        "id": trace.problem.id,
        "problem": trace.problem.question,
        "text": trace.text,
        "answer": run.answer(trace),
        "stop": trace.stop,
        "status": "error" if attempt_error(finished) else "done",
        "error": error[0] if error else None,
        "steps": _steps(trace, run),
        "acceptance_rate": figures.acceptance_rate,
        "token_acceptance_rate": figures.token_acceptance_rate,
        "seconds": figures.seconds,
        "target_alone_seconds_estimate": finished.target_alone_seconds,
        "policy": run.policy,
        "tau": tau_in_json(run.tau),
        "tau_name": run.tau_name,
        "timing": _timing(figures),
    }


def unusable_record(number: int, reason: str) -> dict[str, Any]:
    made = {"id": str(number), "status": "error", "error": f"line {number}: {reason}", "text": "", "steps": []}
    return made | dict.fromkeys(("problem", "answer", "stop", "policy", "tau"))


def row(
    finished: Finished,
    run: RunInfo,
    *,
    sample: int,
    level: Level,
    gold: Any,
    grade: Grade | None,
    wall_seconds: float = 0.0,
    router_seconds: float = 0.0,
    program_seconds: float | None = None,
) -> "Attempted":
    """Return the row of a benchmark attempt.

    `router_seconds` is the time that the policy spent on decisions. `program_seconds` is the time spent outside the models
    and the policy.
    """
    failure = attempt_error(finished)
    solved = _solved(finished, run)
    if run.score_is:
        solved["timing"]["router"] = {"seconds": router_seconds}
    if program_seconds is not None:
        solved["timing"]["program"] = {"seconds": program_seconds}
    return {
        **solved,
        "schema": SCHEMA,
        "sample": sample,
        "level": level,
        "gold": gold,
        "grade": asdict(grade) if grade else None,
        "error": failure,
        "stop": "context" if isinstance(finished.error, ContextFullError) and not failure else solved["stop"],
        "wall_seconds": wall_seconds,
    }


def attempt_error(finished: Finished) -> str | None:
    """Return in one line why an attempt has no result. A full context is a result, as is any other limit."""
    if finished.error is None or (isinstance(finished.error, ContextFullError) and finished.trace.decisions):
        return None
    return " ".join(str(finished.error).split())


def problem_error(finished: Finished) -> tuple[str, str] | None:
    """Return why a problem failed, and a hint, or None. Reaching `max_steps` or `max_tokens` is not a failure."""
    if finished.error is not None:
        return str(finished.error), finished.error.hint
    if finished.trace.stop == "context":
        steps = rounding.count(len(finished.trace.decisions), "step")
        return f"the context was full after {steps}", "use a larger --ctx"
    return None


def _steps(trace: Trace, run: RunInfo) -> "list[KeptStep]":
    steps = [step_record(decision) for decision in trace.decisions]
    if run.explain is None:
        return steps
    found = [run.explain(trace, index) for index in range(len(steps))]
    explanations = [asdict(one) | {"features": dict(one.features)} if one else None for one in found]
    explained: list[ExplainedStep] = [
        {**step, "explanation": explanation} for step, explanation in zip(steps, explanations, strict=True)
    ]
    return [*explained]


def step_record(decision: Decision) -> "KeptStep":
    return {
        **_written(decision.kept),
        "decision": decision.verdict,
        "score": decision.score,
        "advantage": decision.advantage,
        "discarded": _written(decision.discarded) if decision.discarded else None,
    }


def _written(step: Step) -> "Written":
    return {
        "model": step.model,
        "phase": step.phase,
        "text": step.text,
        "tokens": step.num_tokens,
        "seconds": step.seconds,
        "stop": step.stop,
        "cost": _cost_record(step.cost),
        "speculation_cost": _cost_record(step.speculation_cost) or None,
    }


def _cost_record(cost: Cost) -> dict[str, Any]:
    return {name: value for name, value in asdict(cost).items() if value}


def _timing(figures: Tally) -> "Timing":
    timing: Timing = {"draft": _with_speed(figures.draft_cost), "target": _with_speed(figures.target_cost)}
    if figures.reward_cost != Cost():
        timing["reward"] = {"seconds": figures.reward_cost.seconds, **_with_speed(figures.reward_cost)}
    return timing


def _with_speed(cost: Cost) -> dict[str, Any]:
    return {**asdict(cost), "decode_tokens_per_second": cost.tokens_per_second}
