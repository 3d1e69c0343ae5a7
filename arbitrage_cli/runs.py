"""A solved problem as one JSON object, and what a run was made with.

The object is the interface to other programs: fields are added, not renamed. Knows no model and no terminal.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from arbitrage_cli.grading import boxed_answer
from arbitrage_cli.summary import tally
from arbitrage_cli.types import Cost, Decision, Finished, ModelRole, Step, Trace


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a run is made with. `number` says what the router's number is; it and tau are None where nothing is routed."""

    policy: str
    number: str | None
    tau: float | None
    temperature: float
    seed: int
    models: Mapping[ModelRole, str] = field(default_factory=dict)  # as the user named them
    descriptions: Mapping[ModelRole, str] = field(default_factory=dict)  # as the files describe themselves
    settings: Mapping[str, Any] = field(default_factory=dict)  # whatever else the text depends on
    is_toy: bool = False  # the scripted demo models
    num_problems: int | None = None  # None: not known beforehand


def to_json(finished: Finished, run: RunInfo) -> str:
    """One problem's record as a line of JSON: ASCII only, no NaN, an infinite tau as the string "inf" or "-inf"."""
    return json.dumps(record(finished, run), ensure_ascii=True, allow_nan=False)


def record(finished: Finished, run: RunInfo) -> dict[str, Any]:
    """One problem's record. Seconds are time in the models; `target_alone_seconds_estimate` is an estimate."""
    trace = finished.trace
    figures = tally(trace.decisions)
    error = problem_error(finished)
    return {
        "id": trace.problem.id,
        "problem": trace.problem.question,
        "text": trace.text,
        "answer": answer(trace),
        "stop": trace.stop,
        "error": error[0] if error else None,
        "steps": [_step_record(decision) for decision in trace.decisions],
        "acceptance_rate": figures.acceptance_rate,
        "token_acceptance_rate": figures.token_acceptance_rate,
        "seconds": figures.seconds,
        "target_alone_seconds_estimate": finished.target_alone_seconds,
        "policy": run.policy,
        "tau": run.tau if run.tau is None or math.isfinite(run.tau) else str(run.tau),
        "probability_is": run.number,
        "temperature": run.temperature,
        "seed": run.seed,
        "settings": dict(run.settings),
        "draft": run.models.get("draft"),
        "target": run.models.get("target"),
        "models": dict(run.descriptions),
        "timing": {"draft": _cost_record(figures.draft_cost), "target": _cost_record(figures.target_cost)},
    }


def answer(trace: Trace) -> str | None:
    """The final answer of a solution: the last box of the models' own text."""
    return boxed_answer(trace.text)


def problem_error(finished: Finished) -> tuple[str, str] | None:
    """Why a problem was not solved to its end, and what to do; None if it was, or met a limit the user set."""
    if finished.error is not None:
        return str(finished.error), getattr(finished.error, "hint", "")
    if finished.trace.stop == "context":
        return f"the context was full after {_count(finished.trace)}", "give a larger --ctx"
    return None


def _count(trace: Trace) -> str:
    number = len(trace.decisions)
    return f"{number} step" if number == 1 else f"{number} steps"


def _step_record(decision: Decision) -> dict[str, Any]:
    discarded = decision.discarded
    return {
        **_written(decision.kept),
        "decision": decision.verdict,
        "probability": decision.probability,
        "discarded": _written(discarded) if discarded else None,
    }


def _written(step: Step) -> dict[str, Any]:
    return {
        "model": step.model,
        "text": step.text,
        "tokens": step.num_tokens,
        "seconds": step.seconds,
        "stop": step.stop,
    }


def _cost_record(cost: Cost) -> dict[str, Any]:
    return {
        "prefill_tokens": cost.prefill_tokens,
        "prefill_seconds": cost.prefill_seconds,
        "decode_tokens": cost.decode_tokens,
        "decode_seconds": cost.decode_seconds,
        "decode_tokens_per_second": cost.tokens_per_second,
    }
