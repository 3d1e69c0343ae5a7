"""Prefills, decodes and draws tokens to write steps with one model.

Verification uses the same random numbers as ordinary decoding, so a proposal does not change the text if the model computes
the same logits in a batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from arbitrage_cli.arbitrage import EarlyStop
from arbitrage_cli.errors import ComputeError
from arbitrage_cli.inference.acceptance import Acceptance
from arbitrage_cli.inference.backend import Clock, Floats
from arbitrage_cli.inference.kv_cache import CachedProblem, KvCache
from arbitrage_cli.inference.proposals import History, Place, Proposal
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.speculation import Speculator
from arbitrage_cli.inference.step_text import MAX_CHARACTER_BYTES, StepText, step_end, text_end
from arbitrage_cli.inference.token_stats import Recorder
from arbitrage_cli.types import Cost, Phase, StepStop, Trace


class Ahead(NamedTuple):
    """Cached tokens after the end of a step, the first of which ended it, and the logits after each token.

    `position` is the index of the first token.
    """

    position: int
    tokens: list[int]
    logits: Floats


@dataclass(slots=True)
class OpenProblem:
    """A problem in flight."""

    cached: CachedProblem
    sampler: Sampler
    acceptance: Acceptance = field(default_factory=Acceptance)
    history: History | None = None
    num_speculated: int = 0  # leading tokens of the text that the speculator has read
    proposal: Proposal = field(default_factory=Proposal)
    ahead: Ahead | None = None

    def prepare(self, trace: Trace) -> int:
        """Prepare the cache as `CachedProblem.prepare`, and drop the tokens ahead unless the next step begins with them."""
        room = self.cached.prepare(trace)
        cached = self.cached
        ahead = self.ahead
        if ahead and (len(cached.held) != ahead.position or cached.unread != ahead.tokens[:1]):
            cached.cut(len(cached.held))
            self.ahead = None
        return room


@dataclass(slots=True)
class StepInProgress:
    """A step that is being written.

    Only the step's first `max_proposed` tokens may be proposed. A batch verifies at most `max_verified` proposed tokens.
    `cost` excludes decoding.
    """

    opened: OpenProblem
    trace: Trace
    max_tokens: int
    recorder: Recorder | None
    max_proposed: int
    max_verified: int
    text: StepText
    phase: Phase = "answer"
    is_last_thought: bool = False  # the thinking budget ends with `max_tokens`
    early_stop: EarlyStop | None = None
    speculator: Speculator | None = None
    until_end: bool = False  # the model writes the next step too, so batches may continue into it
    tokens: list[int] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    decode_seconds: float = 0.0
    speculation_cost: Cost = field(default_factory=Cost)
    stop: StepStop | None = None

    @property
    def room(self) -> int:
        """The maximum number of proposed tokens in the next batch."""
        return min(self.max_verified, self.max_proposed - len(self.tokens))

    @property
    def place(self) -> Place:
        return self.opened.proposal.place(self.room)

    @property
    def total_cost(self) -> Cost:
        num_decoded = len(self.tokens) - self.cost.verify_kept
        return self.cost + Cost(decode_tokens=num_decoded, decode_seconds=self.decode_seconds)

    def charge(self, seconds: float, num_rows: int, num_drawn: int) -> None:
        if num_rows == 1:
            self.decode_seconds += seconds
        else:  # a verified proposal
            self.cost += Cost(verify_tokens=num_rows, verify_seconds=seconds, verify_kept=num_drawn, verify_batches=1)


class Decoder:
    """Runs one model for several problems at once."""

    def __init__(self, cache: KvCache, clock: Clock) -> None:
        self._tokenizer = cache.backend.tokenizer
        self._cache = cache
        self._clock = clock

    def read(self, step: StepInProgress) -> None:
        """Prefill some of the unread tokens.

        The last unread token is always decoded, so that statistics do not depend on the cache.
        """
        began = self._clock()
        num_read = step.opened.cached.read(step.opened.cached.unread[:-1])
        step.cost += Cost(prefill_tokens=num_read, prefill_seconds=self._clock() - began)

    def decode(self, steps: Sequence[StepInProgress], rows: Sequence[list[int]]) -> list[list[str]]:
        """Decode a batch.

        For each step, draw tokens until a token differs from the step's row of proposed tokens. Return the texts of the
        drawn tokens.
        """
        logits = self._cache.decode([(step.opened.cached, tokens) for step, tokens in zip(steps, rows, strict=True)])
        drawn: list[list[str]] = []
        row = 0
        for step, tokens in zip(steps, rows, strict=True):
            drawn.append(self._draw_while_proposed(step, tokens, logits[row : row + len(tokens)]))
            row += len(tokens)
        return drawn

    def take_ahead(self, step: StepInProgress, ahead: Ahead) -> list[str]:
        """Draw tokens from logits that were computed before the step began. Return their texts."""
        step.opened.ahead = None
        texts = self._draw_while_proposed(step, ahead.tokens, ahead.logits)
        step.cost += Cost(verify_kept=len(texts))
        return texts

    def write_on(
        self,
        cached: CachedProblem,
        max_tokens: int,
        num_rows: int,
        sampler: Sampler,
        should_continue: Callable[[Floats, int], bool],
    ) -> Cost:
        """Prefill pending tokens, then decode outside a step while `should_continue(logits, token)` returns true.

        `num_rows` says how the unread tokens are read, as in `UnitCosts.read`.
        """
        unread = cached.unread
        tokens, before = (unread, []) if num_rows == len(unread) else (unread[-1:], unread[:-1])
        num_read = len(unread) - 1
        num_decoded = 0
        began = self._clock()
        while before:
            del before[: cached.read(before[: num_rows or None])]
        read = self._clock()
        while num_decoded < max_tokens:
            logits = self._cache.decode([(cached, tokens)])[-1]
            cached.held.extend(tokens)
            num_decoded += 1
            token = self._choose(cached, sampler, logits)
            if not should_continue(logits, token):
                break
            tokens = [token]
        return Cost(num_read, read - began, num_decoded, self._clock() - read)

    def _draw_while_proposed(self, step: StepInProgress, tokens: list[int], logits: Floats) -> list[str]:
        texts: list[str] = []
        cached = step.opened.cached
        for index, token in enumerate(tokens):
            if texts and (step.stop or token != step.tokens[-1]):
                break
            cached.held.append(token)
            texts.append(self._draw(step, logits[index]))
        num_drawn = len(texts)
        if num_drawn < len(tokens):
            if step.until_end and step.stop == "separator" and tokens[num_drawn] == step.tokens[-1]:
                step.opened.ahead = Ahead(len(cached.held), tokens[num_drawn:], logits[num_drawn:].copy())
            else:
                cached.cut(len(cached.held))
        return texts

    def _draw(self, step: StepInProgress, logits: Floats) -> str:
        """Draw the next token from `logits` (n_vocab,) and return its text. Sets `step.stop` if the step ends."""
        token = self._choose(step.opened.cached, step.opened.sampler, logits)
        if step.opened.proposal:
            step.opened.acceptance.follow(step.opened.proposal, token)
        step.tokens.append(token)
        step.opened.cached.required.append(token)
        if step.recorder:
            step.recorder.add(logits, token, is_top=step.opened.sampler.is_greedy)
        step.stop = self._cache.ends(step.phase, token)
        if step.stop:
            return ""
        text = step.text.add(self._tokenizer.piece(token))
        if step.recorder:
            step.recorder.add_text(text)
        step.stop = self._reason_to_stop(step)
        return text

    def _choose(self, cached: CachedProblem, sampler: Sampler, logits: Floats) -> int:
        """Choose the token after those in the cache. Raises ComputeError with the model's name if no token can be chosen."""
        try:
            return sampler.choose(logits, cached.problem.question, len(cached.held))
        except ComputeError as error:
            raise ComputeError(f"{self._cache.backend.card.name}: {error.message}", error.hint) from error

    def _reason_to_stop(self, step: StepInProgress) -> StepStop | None:
        beyond = len(step.tokens) - step.max_tokens  # the step may complete a character
        is_spent = beyond >= 0 and (not step.text.is_inside_character or beyond >= MAX_CHARACTER_BYTES - 1)
        is_full = len(step.opened.cached.held) + 1 >= self._cache.context_size  # has room for the next token only
        stop = text_end(step.text, step.tokens, step.phase)
        return step_end(stop, is_spent=is_spent, is_last_thought=step.is_last_thought, is_full=is_full)
