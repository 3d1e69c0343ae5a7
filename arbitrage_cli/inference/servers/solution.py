"""Writes one problem's steps with requests to a server: divides the responses into steps, and decides where a step ends.

A server stops at every separator. If the step does not end there, another request continues it. With `until_end`, one request
returns the rest of the phase, and the response is divided into steps. Runs in the connection's thread.
"""

import time
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from arbitrage_cli.arbitrage import WriteStep
from arbitrage_cli.errors import ContextFullError, ServerRequestError
from arbitrage_cli.inference.servers.billing import Bill
from arbitrage_cli.inference.servers.dialects import Prompt, TextRequest
from arbitrage_cli.inference.servers.received import ReceivedStep, nothing_received, without_end_token
from arbitrage_cli.inference.servers.requests import Options, Requests
from arbitrage_cli.inference.servers.responses import Ending, Piece, token_stats
from arbitrage_cli.inference.step_text import StepText, end_of, step_end
from arbitrage_cli.types import WHOLE, Cost, Decision, Step, StepStop, TokenStats, Trace

MAX_BLANK_RESPONSES = 4  # in a row


class Report(Protocol):
    """Reports what was written: text, a complete step, or that a part of the prompt must be read again."""

    def __call__(self, *, text: str = "", num_unread: int = 0, step: Step | None = None) -> None: ...


class Solution:
    """The solution of one problem. `trace` may have steps that the flow has not yet received.

    With `until_end`, the current request asks for all later steps. `num_prompt` counts the tokens of the prompt without the
    solution, or is None if they are unknown.
    """

    trace: Trace

    def __init__(self, options: Options, requests: Requests, report: Report) -> None:
        self._options = options
        self._requests = requests
        self._report = report
        self._reported_prompt: int | None = None
        self._began = 0.0  # when the request for the step began
        self._step = nothing_received()
        self._bill = Bill()
        self.until_end = False

    @property
    def num_prompt(self) -> int | None:
        return self._requests.num_prompt if self._reported_prompt is None else self._reported_prompt

    @property
    def num_steps(self) -> int:
        return len(self.trace.decisions)

    def begin(self, request: WriteStep) -> None:
        self.until_end = request.until_end
        self.trace = replace(request.trace, decisions=[*request.trace.decisions])

    def begin_step(self) -> None:
        """Begin the step now, because the server may refuse to be asked."""
        self._began = time.perf_counter()
        self._receive_next()

    def retract(self) -> None:
        """Forget the step that is being received, which will be written again."""
        self._bill.retract(self._step)
        self._step = nothing_received()
        self._report(num_unread=1)

    def cut(self) -> Step | None:
        """End the step that is being received. Return it, or None if it has cost nothing. Forget the request."""
        step = self._step
        text = step.text.finish(is_cut=True)
        cost = self._bill.cut(step)
        self.until_end = False
        self._step = nothing_received()
        self._bill = Bill()
        return Step(self._options.role, text, step.num_tokens, cost, "early", phase=step.phase) if cost != Cost() else None

    async def write(self) -> None:
        """Write the next step or, with `until_end`, the rest of the phase."""
        self._receive_next()
        prompt = await self._requests.prompt(self.trace)
        room = self._room_after(prompt)
        budget, is_last_thought = self.trace.next_budget(self._longest_step(prompt))
        stop = await self._receive_step(prompt, min(budget, room))
        num_tokens = self._step.num_in_response
        is_at_limit = stop == "budget"
        ended = step_end(
            None if is_at_limit else stop,
            is_spent=budget <= room and (is_at_limit or num_tokens >= budget),
            is_last_thought=is_last_thought,
            is_full=is_at_limit and num_tokens >= room,
        )
        self._keep(ended or stop)

    def _receive_next(self, num_earlier: int = 0) -> None:
        text = self._options.prompt.step_text(self.trace)
        self._step = ReceivedStep(text, self.trace.phase, self._began, num_earlier)

    def _room_after(self, prompt: Prompt) -> int:
        """Return the number of tokens that fit after the prompt. Raises ContextFullError if no token fits."""
        card = self._options.model.card
        if len(prompt.ids) >= card.context_size:
            message = (
                f"the solution so far ({len(prompt)} tokens) fills the context of {card.name} ({card.context_size} tokens)"
            )
            raise ContextFullError(message, "use a shorter problem or a smaller --max-tokens")
        return card.context_size - len(prompt.ids)

    def _longest_step(self, prompt: Prompt) -> int | None:
        """Return the limit of a step's tokens, or None if it is the usual one. Servers may reject more than fits."""
        if not self.until_end:
            return None
        return max(self._options.model.card.context_size - len(prompt), self.trace.limits.max_step_tokens)

    # --- from responses to steps

    async def _receive_step(self, prompt: Prompt, max_tokens: int) -> StepStop:
        """Send requests until the step ends. Return the reason why it ends."""
        num_blank = 0
        while num_blank < MAX_BLANK_RESPONSES:
            num_left = max_tokens - self._step.num_in_response
            if num_left <= 0:
                return "budget"
            before = self._step.visible
            if stop := await self._continue(self._next_request(prompt, num_left)):
                return stop
            num_blank = num_blank + 1 if self._step.visible == before else 0
        raise ServerRequestError(f"{self._options.model.name} writes only blank lines")

    def _next_request(self, prompt: Prompt, max_tokens: int) -> TextRequest:
        return self._requests.next(prompt, self._step, max_tokens, until_end=self.until_end)

    async def _continue(self, request: TextRequest) -> StepStop | None:
        """Add a response to the step. Return the reason why the step ends, or None if it does not end yet."""
        is_first = not (self.trace.decisions or self._step.pieces)  # otherwise, the prompt contains steps
        ending = await self._receive(request)
        if is_first and (usage := self._bill.usage_so_far):
            self._reported_prompt = usage.prompt
        self._bill.note_end(self._step)
        if ending is None:
            return self._step.stop
        if self._is_empty() and (ending == "length" or not self.trace.decisions):
            hint = "if the model thinks without showing its thoughts, turn this off"
            raise ServerRequestError(f"{self._options.model.server.name} sent a response without text", hint)
        return await self._stop(ending, request)

    async def _receive(self, request: TextRequest) -> Ending | None:
        """Add the pieces of a response to the step. Return how it ended, or None if it was closed because it has enough."""
        ending = None
        async with aclosing(self._options.model.pieces(request, self._requests.topic)) as pieces:
            async for piece in pieces:
                self._bill.note_arrival(request.prompt, piece.usage)
                self._add(without_end_token(piece, request.marker), request.max_tokens)
                ending = piece.ending or ending
                if self._needs_no_more():
                    return None
        if ending is None:
            raise ValueError("`ServedModel.pieces` ended without an ending")
        return ending

    def _is_empty(self) -> bool:
        """Return whether a response has nothing, not even a token without text, such as the end of the sequence."""
        return not self._step.num_in_response

    def _needs_no_more(self) -> bool:
        return self._step.stop == "loop" and not self.until_end

    def _add(self, piece: Piece, max_tokens: int) -> None:
        """Add a piece to the step. If the response has more steps, keep each complete step and begin the next one."""
        rest: Piece | None = piece
        while rest:
            own, rest = self._split(rest)
            step = self._step
            if text := step.add(own):
                self._report(text=text)
            if not self.until_end or step.text.has_marker:
                return  # what follows the end is not needed
            is_at_limit = step.num_tokens >= self.trace.limits.max_step_tokens
            stop = step.stop or ("budget" if is_at_limit else None)
            if stop and step.num_in_response < max_tokens:
                self._keep(stop)
                self._step.first_at = self._began  # it had no prompt of its own

    def _split(self, piece: Piece) -> tuple[Piece, Piece | None]:
        """Split a piece that may have several tokens where the step ends."""
        may_go_beyond = self.until_end and len(piece.ids) != 1
        return self._step.split(piece) if may_go_beyond else (piece, None)

    def _keep(self, stop: StepStop) -> None:
        """Finish the step, add it to the trace, and report it. Then begin the next step."""
        received = self._step
        stats = self._token_stats(received) if self._options.keep_token_stats and not self.until_end else None
        text = received.text.finish(is_cut=stop not in WHOLE)
        cost = self._bill.kept(received)
        step = Step(self._options.role, text, received.num_tokens, cost, stop, stats, phase=received.phase)
        self._requests.remember(step, received)
        self.trace.add(Decision(kept=step))
        self._began = time.perf_counter()
        self._receive_next(received.num_in_response)
        self._report(step=step)

    def _token_stats(self, step: ReceivedStep) -> TokenStats:
        model = self._options.model
        try:
            return token_stats(step.tokens, model.num_alternatives, model.card.vocabulary_size)
        except ValueError as error:
            raise ServerRequestError(f"{model.server.name}: {error}") from error

    # --- the end of a response

    async def _stop(self, ending: Ending, request: TextRequest) -> StepStop | None:
        """Return the reason why a step ends whose response the server has ended, or None if it does not end yet."""
        step = self._step
        if step.text.has_marker:
            return step.stop
        if ending == "separator" and not self.until_end:
            self._check_separator(step.text, request)
            return step.stop
        if ending == "length":
            return step.stop or "budget"
        return end_of(step.phase)

    def _check_separator(self, text: StepText, request: TextRequest) -> None:
        """Raise ServerRequestError if the server stopped at the separator, but did not send it."""
        if text.so_far.strip() and not text.so_far.endswith(request.stop) and not text.ended:
            raise ServerRequestError(
                f"{self._options.model.server.name} omitted the stop string ({self._options.style.step_end}) from its response"
            )
