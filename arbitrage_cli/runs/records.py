"""Describes runs and their attempts: the settings that displays show, the keys of rows, and why an attempt failed."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from arbitrage_cli.errors import ContextFullError
from arbitrage_cli.numbers import formatting
from arbitrage_cli.problems.answers import boxed_answer
from arbitrage_cli.types import Attribution, Finished, ModelRole, Trace

SCHEMA: Literal[1] = 1
"""The schema of rows and run.json. Folders with another schema are rejected."""
BENCH, COLLECT, SOLVE = "bench", "collect", "solve"
"""The kinds of runs, named after the commands that create them. The run.json of a benchmark omits the kind."""

Level = str | int | None
Tau = float | Literal["inf", "-inf"] | None
Key = tuple[str, int, str | None, Tau]  # the attempt that a row belongs to: problem ID, sample, policy and tau

LIMITS: Mapping[str, str] = {"max_tokens": "--max-tokens", "max_steps": "--max-steps", "context": "--ctx"}
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
    may_answer: Callable[[str], bool] = lambda question: True  # whether the models were trained on such questions
    bill: Callable[[Finished], tuple[float, float | None] | None] = lambda finished: None  # dollars: spent, target alone

    def answer(self, trace: Trace) -> str | None:
        return self.find_answer(trace.text)


def tau_in_json(tau: float | None) -> Tau:
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
        steps = formatting.count(len(finished.trace.decisions), "step")
        return f"the context was full after {steps}", "use a larger --ctx"
    return None
