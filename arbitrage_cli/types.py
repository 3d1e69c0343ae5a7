"""The records that everything else passes around: problems, steps, decisions, traces, events.

Knows no model, no file, no terminal, and nothing outside the standard library. Every record is frozen except `Trace`,
which is appended to by flows and by nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

ModelRole = Literal["draft", "target", "prm"]
"""Who computes. The process reward model rates steps and writes none."""

StepStop = Literal["separator", "end", "budget", "context", "early"]
"""Why a step ended: blank line, end of sequence, token budget used up, context full; or it was stopped, to be written anew."""

TraceStop = Literal["end", "max_steps", "max_tokens", "context"]
"""Why a solution ended: the kept step closed the sequence, or a limit was reached."""


DEFAULT_CONTEXT_SIZE = 4096

KV_BYTES: Mapping[str, float] = MappingProxyType({"auto": 2.0, "f32": 4.0, "f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32})
"""Of one number in the KV cache by its format, block scales included."""

CACHED_BYTES = 32 << 20
"""Of weights that stay in a processor's cache, as a rule."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One question, and what its results are called by."""

    id: str
    question: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one solution: kept steps, kept tokens in all, and tokens of a single step."""

    max_steps: int = 100
    max_tokens: int = 4096
    max_step_tokens: int = 512


@dataclass(frozen=True, slots=True)
class TokenStats:
    """What a model computed while it wrote a step of n tokens, at temperature 1 whatever the sampling was.

    `log_probabilities`, `entropies` (nats) and `margins` (log-probability of the likeliest token minus that of the
    runner-up) have n entries each. `hidden` is a float32 array (n, n_embd): row i is the post-norm last hidden state
    from which token i was drawn; None if it was not kept. `pieces` are the characters that each token completed: empty for one
    that ends the sequence or only begins a character.
    """

    log_probabilities: Sequence[float]
    entropies: Sequence[float]
    margins: Sequence[float]
    hidden: object | None = None
    pieces: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """Model time of a step. Prefill reads text written elsewhere, decode goes on one token at a time.

    Verify reads tokens of a proposal and draws after each of them: `verify_tokens` were read so, and gave `verify_kept`
    of the step's tokens; the others of the step were decoded.
    """

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    verify_tokens: int = 0
    verify_seconds: float = 0.0
    verify_kept: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.prefill_tokens + other.prefill_tokens,
            self.prefill_seconds + other.prefill_seconds,
            self.decode_tokens + other.decode_tokens,
            self.decode_seconds + other.decode_seconds,
            self.verify_tokens + other.verify_tokens,
            self.verify_seconds + other.verify_seconds,
            self.verify_kept + other.verify_kept,
        )

    @property
    def seconds(self) -> float:
        return self.prefill_seconds + self.decode_seconds + self.verify_seconds

    @property
    def tokens_per_second(self) -> float | None:
        """Decoding speed, prefill and verify left out; None if nothing was decoded, or in no time."""
        return self.decode_tokens / self.decode_seconds if self.decode_tokens and self.decode_seconds > 0 else None


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One reasoning step as one model wrote it. Models exchange `text`; token ids stay inside the engine.

    `num_tokens` counts the tokens that the model drew, the one that ended the sequence included. `speculation_cost` is what the
    draft took to say how a step of the target might go on.
    """

    model: ModelRole
    text: str
    num_tokens: int
    cost: Cost
    stop: StepStop
    token_stats: TokenStats | None = None
    speculation_cost: Cost = Cost()

    @property
    def seconds(self) -> float:
        return self.cost.seconds + self.speculation_cost.seconds

    @property
    def known_token_stats(self) -> TokenStats:
        """What the model computed while it wrote the step. ValueError if that was not kept."""
        if self.token_stats is None:
            raise ValueError("this router reads the evidence of the drafted step, and none was kept")
        return self.token_stats


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """One step of a solution: what was kept, everything that was written for it, and the number that decided.

    `probability` is what was compared with tau: the router's probability that the target's step is better, or, for a router
    without a learned head, its own number (an entropy in nats, a negative mean log-probability, a uniform draw). `advantage` is
    the true one, reward of the target's step minus reward of the drafted one, where both were written and rated.
    """

    kept: Step
    draft: Step | None = None
    target: Step | None = None
    probability: float | None = None
    advantage: float | None = None

    @property
    def discarded(self) -> Step | None:
        """The step that was written and not kept."""
        return self.target if self.kept is self.draft else self.draft

    @property
    def verdict(self) -> Literal["accept", "escalate"] | None:
        """What became of the drafted step; None where nothing was drafted or nothing was compared with it."""
        if self.draft is None or (self.target is None and self.probability is None):
            return None
        return "accept" if self.kept is self.draft else "escalate"


@dataclass(slots=True, eq=False)
class Trace:
    """The solution of one problem so far. The one mutable record; only flows append to it."""

    problem: Problem
    limits: Limits
    decisions: list[Decision] = field(default_factory=list)

    def add(self, decision: Decision) -> None:
        self.decisions.append(decision)

    @property
    def text(self) -> str:
        return "".join(decision.kept.text for decision in self.decisions)

    @property
    def num_tokens(self) -> int:
        return sum(decision.kept.num_tokens for decision in self.decisions)

    @property
    def stop(self) -> TraceStop | None:
        """Why the solution is finished; None while it is not."""
        if not self.decisions:
            return None
        last = self.decisions[-1].kept.stop
        if last in ("end", "context"):
            return "end" if last == "end" else "context"
        if self.num_tokens >= self.limits.max_tokens:
            return "max_tokens"
        return "max_steps" if len(self.decisions) >= self.limits.max_steps else None

    @property
    def finished(self) -> bool:
        return self.stop is not None


@dataclass(frozen=True, slots=True)
class Score:
    """What the grade of a solution is, the answer that was found in it, and why it is graded so.

    `unscored` is what could not be compared: it is not known to be wrong.
    """

    value: Literal["correct", "incorrect", "unscored"]
    answer: str | None
    explanation: str


@dataclass(frozen=True, slots=True)
class Started:
    """A problem was taken up."""

    trace: Trace


@dataclass(frozen=True, slots=True)
class Writing:
    """A model is about to write the next step of a trace, when it has read `num_unread` tokens that it has not seen.

    Told anew while it reads a long text.
    """

    trace: Trace
    model: ModelRole
    num_unread: int


@dataclass(frozen=True, slots=True)
class Rating:
    """Steps of a trace are being rated. Told anew while that goes on."""

    trace: Trace


@dataclass(frozen=True, slots=True)
class Wrote:
    """A model added one token to the step it is writing. `text` is empty where it ends the step or only begins a character."""

    trace: Trace
    model: ModelRole
    text: str


@dataclass(frozen=True, slots=True)
class Decided:
    """A step was kept."""

    trace: Trace
    decision: Decision


@dataclass(frozen=True, slots=True)
class Finished:
    """A problem is done. `error` is set when it could not be finished; the steps kept until then stay in the trace.

    `target_alone_seconds` is an estimate, never a measurement: the time that the target alone would have taken for a
    solution of the same text, from its measured speeds. None if the target was not loaded, or had other problems to solve beside. `reward_cost` is what rating
    steps took, of whichever model did it.
    """

    trace: Trace
    error: Exception | None = None
    target_alone_seconds: float | None = None
    reward_cost: Cost = Cost()


Event = Started | Writing | Rating | Wrote | Decided | Finished
