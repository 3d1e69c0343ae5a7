"""A toy language whose next token is a hash of everything in the cache, and helpers that solve problems with it.

A scripted model forgives a stale cache if the text looks the same. This one does not: with one token too many or too few anywhere,
all that follows is another text. Distributions are spread out, so entropies and draws vary.
"""

import functools
import hashlib
import itertools
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from made_up_tuning import unit_costs
from scripted_models import ByteTokenizer, Continuation, ScriptedBackend

from arbitrage_cli.arbitrage import Flow, Scorer, WriteStep
from arbitrage_cli.inference.acceptance import Acceptance
from arbitrage_cli.inference.backend import Backend, Deadline, Floats, LoadOptions, SavedState
from arbitrage_cli.inference.chat_template import INSTRUCTIONS, PromptStyle
from arbitrage_cli.inference.engine import Engine, as_speculator
from arbitrage_cli.inference.kv_cache import KvCache, RetainedIds
from arbitrage_cli.inference.proposals import Place
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Job, Scheduler, Writer
from arbitrage_cli.inference.speculation import Drafting, Planner, Speculator
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import Route
from arbitrage_cli.types import Event, Finished, Limits, ModelRole, Problem, Trace

LETTERS = "abcdefghijklmnop "
CONTROLS = ("<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}<|assistant|>"
SHORT = Limits(max_steps=6, max_tokens=120, max_step_tokens=40)


@functools.lru_cache(50_000)
def _noise(digest: bytes, count: int) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(int.from_bytes(digest))
    return rng.normal(0.0, rng.uniform(0.5, 4.0), count)


class SpaceTokenizer(ByteTokenizer):
    """Inserts a space before a text that continues no other text, as SentencePiece does."""

    def tokenize(self, text: str, *, continues: bool) -> list[int]:
        return super().tokenize(text if continues or not text else f" {text}", continues=continues)


Tokenizers = Callable[[Sequence[str], Sequence[str]], ByteTokenizer]
WORDS = (".\n\n", ":\n\n", "\n\n", " a", " b", " op", "ing", "ace", "on")


def words(merges: Sequence[str], controls: Sequence[str]) -> ByteTokenizer:
    """Words with the space before them, and blank lines with the sign before them, are tokens, as in Qwen's vocabulary."""
    return ByteTokenizer(WORDS, controls)


TOKENIZERS: Mapping[str, Tokenizers] = {"bytes": ByteTokenizer, "spaces": SpaceTokenizer, "words": words}


def silent(question: str, solution: str) -> Continuation:
    return Continuation("", 1.0)


class HashBackend(ScriptedBackend):
    """A toy language model: its tokens are bytes, `merges` and three control tokens, its logits a hash of the text."""

    chat_template: str | None = TEMPLATE

    def __init__(
        self,
        name: str = "hash",
        *,
        merges: Sequence[str] = (".\n\n",),
        num_sequences: int = 1,
        context_size: int = 2048,
        tokenizer: str = "bytes",
    ) -> None:
        super().__init__(name, silent, LoadOptions(context_size, num_sequences=num_sequences))
        self.tokenizer = TOKENIZERS[tokenizer](merges, CONTROLS)
        self._name, self._size = name, self.tokenizer.size
        self._written = np.array([*map(ord, LETTERS), *range(256, self._size - len(CONTROLS)), self._size - 1])
        self._favour = np.zeros(len(self._written))
        self._favour[len(LETTERS) :] = 2.0  # a separator about every 12 tokens,
        self._favour[-1] = 0.5  # an end now and then

    def read(self, sequence: int, position: int, tokens: Sequence[int], *, deadline: Deadline | None = None) -> None:
        held = len(self.cells[sequence])  # what should have been dropped is hashed too
        super().read(sequence, held, tokens, deadline=deadline)

    def _state(self, sequence: int) -> object:
        """What the logits depend on."""
        return self.cells[sequence]

    def _compute(self, sequence: int) -> Floats:
        text = f"{self._name}/{self._state(sequence)}".encode()
        digest = hashlib.blake2b(text, digest_size=8).digest()
        logits = np.full(self._size, -30.0, np.float32)
        logits[self._written] = self._favour + _noise(digest, len(self._written))
        return logits


class Wavering(HashBackend):
    """Differs from the model of the same name in one token in eight."""

    def _compute(self, sequence: int) -> Floats:
        logits = super()._compute(sequence)
        if int(abs(logits[self._written[0]]) * 1e6) % 8 == 0:
            logits[self._written] = np.roll(logits[self._written], 1)
        return logits


class Rounding(HashBackend):
    """Rounds differently in every batch, as llama.cpp does, but by much more. Nothing separates its messages."""

    chat_template = "<|user|>{% for m in messages %}{{ m.content }}{% endfor %}<|assistant|>"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._batches: list[list[tuple[int, int]]] = [[] for _ in self.cells]  # of each token: where it begins, its size

    def read(self, sequence: int, position: int, tokens: Sequence[int], *, deadline: Deadline | None = None) -> None:
        start, batches = len(self.cells[sequence]), self._batches[sequence]
        super().read(sequence, position, tokens, deadline=deadline)
        batches[start:] = [(start, len(tokens))] * len(tokens)

    def _state(self, sequence: int) -> object:
        return self.cells[sequence], self._batches[sequence]


class Recurrent(HashBackend):
    """Cannot drop a tail, like a model with recurrent layers."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.states = self

    def drop(self, sequence: int, position: int) -> None:
        assert position == 0, "a tail cannot be dropped"
        super().drop(sequence, 0)

    max_dropped = 0

    def can_drop(self, sequence: int, position: int) -> bool:
        return False

    def num_held(self, sequence: int) -> int:
        return len(self.cells[sequence])

    def save(self, sequence: int) -> SavedState:
        return np.array(self.cells[sequence], np.uint32).view(np.uint8)

    def restore(self, sequence: int, position: int, state: SavedState) -> None:
        cells = state.view(np.uint32).tolist()
        assert len(cells) == position
        assert self.cells[sequence][:position] == cells, "the tokens before it were forgotten in between"
        self.cells[sequence] = cells


class Rollback(Recurrent):
    """Can drop up to eight tokens of the latest batch. Like llama.cpp, it forgets the wrong tokens if none of the batch is kept."""

    max_dropped = 8

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._first: dict[int, int] = {}
        self.num_dropped = self.num_restored = 0

    def read(self, sequence: int, position: int, tokens: Sequence[int], *, deadline: Deadline | None = None) -> None:
        self._first.pop(sequence, None)
        super().read(sequence, position, tokens, deadline=deadline)

    def decode(
        self, sequences: Sequence[int], positions: Sequence[int], tokens: Sequence[int], *, deadline: Deadline | None = None
    ) -> Floats:
        logits = super().decode(sequences, positions, tokens, deadline=deadline)
        self._first = dict(zip(reversed(sequences), reversed(positions), strict=True))
        return logits

    def can_drop(self, sequence: int, position: int) -> bool:
        first = self._first.get(sequence, position)
        return first < position and len(self.cells[sequence]) - position <= self.max_dropped

    def drop(self, sequence: int, position: int) -> None:
        first = self._first.pop(sequence, None)
        if position:
            assert first is not None, "a tail of an earlier batch cannot be dropped"
            assert len(self.cells[sequence]) - position <= self.max_dropped
            self.num_dropped += 1
        stale = [-1] if position and position == first else []
        self.cells[sequence][position:] = stale

    def restore(self, sequence: int, position: int, state: SavedState) -> None:
        super().restore(sequence, position, state)
        self.num_restored += 1


class RoundingRollback(Rounding, Rollback):
    pass


@dataclass(slots=True)
class Call:
    name: str
    sequences: list[int]
    positions: list[int]
    tokens: list[int] = field(default_factory=list)


class Recording:
    """Records the calls of a backend that change its cache, with their logits."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.card, self.tokenizer = backend.card, backend.tokenizer
        self.chat_template, self.template_variables = backend.chat_template, backend.template_variables
        self.states = backend.states
        self.calls: list[Call] = []
        self.outputs: list[Floats] = []

    def read(self, sequence: int, position: int, tokens: Sequence[int], *, deadline: Deadline | None = None) -> None:
        self.calls.append(Call("read", [sequence], [position], list(tokens)))
        self._backend.read(sequence, position, tokens, deadline=deadline)

    def decode(
        self, sequences: Sequence[int], positions: Sequence[int], tokens: Sequence[int], *, deadline: Deadline | None = None
    ) -> Floats:
        self.calls.append(Call("decode", list(sequences), list(positions), list(tokens)))
        output = self._backend.decode(sequences, positions, tokens, deadline=deadline)
        self.outputs.append(output.copy())
        return output

    def drop(self, sequence: int, position: int) -> None:
        self.calls.append(Call("drop", [sequence], [position]))
        self._backend.drop(sequence, position)

    def close(self) -> None:
        self._backend.close()

    def count(self, *names: str) -> int:
        return sum(len(call.tokens) for call in self.calls if call.name in names)


class ForgetfulEngine(Engine):
    """Empties its cache before every step."""

    def start(self, slot: int, request: WriteStep, speculator: Speculator | None = None) -> int:
        self._slots[slot].cached.cut(0)
        return super().start(slot, request, speculator)


CHEAP_BATCHES = unit_costs(1.0)
"""A batch costs as much as a token, so all proposed tokens are verified;"""
CHEAP_DRAFT = unit_costs(0.01)
"""and the draft's continuations cost next to nothing."""


def random_costs(seed: int) -> UnitCosts | None:
    rng = random.Random(seed)
    return rng.choice((None, unit_costs(1.0, rng.uniform(1, 4), rng.uniform(4, 12))))


def unsteady_clock(seed: int) -> Callable[[], float]:
    rng, now = random.Random(seed), 0.0

    def clock() -> float:
        nonlocal now
        now += rng.choice((0.01, 0.1, 1.0, 10.0)) * rng.random()
        return now

    return clock


def ticking_clock() -> Callable[[], float]:
    count = itertools.count()
    return lambda: float(next(count))


def events_of(
    engines: Mapping[ModelRole, Writer],
    problems: Iterable[Problem],
    policy: str,
    tau: float | None = None,
    *,
    limits: Limits = SHORT,
    concurrency: int = 1,
    seed: int = 0,
    scorer: Scorer | None = None,
    stops_early: bool = False,
    speculates: bool = False,
    make_flow: Callable[[Trace], Flow] | None = None,
) -> list[Event]:
    chosen = POLICIES[policy]
    tau = chosen.default_tau if tau is None else tau
    used = {role: engines[role] for role in chosen.models}

    def flow(trace: Trace) -> Flow:
        return Route(chosen, tau, stops_early=stops_early).flow(trace, seed, scorer)

    speculator = as_speculator(used.get("draft")) if speculates else None
    jobs = (Job(problem, make_flow or flow, limits) for problem in problems)
    return list(Scheduler(used, concurrency=concurrency, speculator=speculator).run(jobs))


def finished_of(events: Iterable[object]) -> list[Finished]:
    return [event for event in events if isinstance(event, Finished)]


def solve(
    engines: Mapping[ModelRole, Writer], problems: Iterable[Problem], policy: str, tau: float | None = None, **options: Any
) -> dict[str, Trace]:
    finished = finished_of(events_of(engines, problems, policy, tau, **options))
    assert [event.error for event in finished] == [None] * len(finished)
    return {event.trace.problem.id: event.trace for event in finished}


def texts(traces: Mapping[str, Trace]) -> dict[str, list[tuple[str, str]]]:
    return {
        name: [(decision.kept.model, decision.kept.text) for decision in trace.decisions]
        for name, trace in sorted(traces.items())
    }


Proposals = Literal["none", "drafted", "all"]


def always_draft(
    planner: Planner, draft: UnitCosts, num_unread: int, room: int, acceptance: Acceptance, place: Place
) -> Drafting | None:
    """Replaces `Planner.plan_speculation`: the draft writes 4 tokens whenever it can."""
    return Drafting(acceptance.calibration, [0.0] * (1 + min(room, 4)), 1.0) if room > 0 else None


def planner(costs: UnitCosts | None, proposals: Proposals = "drafted") -> Planner | None:
    return Planner(costs, prompt_lookup=proposals == "all") if costs and proposals != "none" else None


def hash_engines(
    sampler: Sampler | None = None,
    *,
    make: Callable[..., Backend] = HashBackend,
    engine: type[Engine] = Engine,
    num_sequences: int = 1,
    same_model: bool = False,
    make_draft: Callable[..., Backend] | None = None,
    proposals: Proposals = "all",
    costs: UnitCosts | None = CHEAP_BATCHES,
    clock: Callable[[], float] = time.perf_counter,
    keep: RetainedIds = "nothing",
    max_checkpoints: int | None = None,
    instructions: str = INSTRUCTIONS,
) -> dict[ModelRole, Engine]:
    """A draft and a target, with different vocabularies unless they are the same model."""
    chosen = sampler or Sampler()
    draft = (make_draft or make)("draft", num_sequences=num_sequences)
    if same_model:
        target = make("draft", num_sequences=num_sequences)
    else:
        target = make("target", merges=("\n\n", "ab", "e "), num_sequences=num_sequences)
    how: dict[str, Any] = {"style": PromptStyle(instructions), "keep": keep, "max_checkpoints": max_checkpoints}
    return {
        "draft": engine("draft", KvCache(draft, **how), chosen, keep_token_stats=True, planner=planner(CHEAP_DRAFT)),
        "target": engine("target", KvCache(target, **how), chosen, planner=planner(costs, proposals), clock=clock),
    }
