"""Writes steps through a chat API, which reports neither token ids nor, in most cases, whether it reached a stop string."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from arbitrage_cli.errors import ServerRequestError
from arbitrage_cli.inference.backend import Deadline
from arbitrage_cli.inference.chat_template import PromptStyle
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.servers.chat import END, Chat, NotContinuedError, OwnText
from arbitrage_cli.inference.servers.dialects import Dialogue, Ending, Piece, Prompt, TextRequest
from arbitrage_cli.inference.servers.model import Controls, ServedModel
from arbitrage_cli.inference.servers.writer import ServedWriter, Slot, StepSoFar
from arbitrage_cli.types import ModelRole, Phase, Problem, StepStop, Trace

MAX_ATTEMPTS = 2  # to continue a solution
CHECK_TOKENS = 4  # written to find out whether a solution goes on


class ChatWriter(ServedWriter):
    """A `Writer` for a model behind a chat API. `is_complete` reports whether a solution may be complete, given its text.

    If the other model thinks, its thinking is continued as ordinary text, until the server ends the response.
    """

    def __init__(
        self,
        role: ModelRole,
        model: ServedModel,
        chat: Chat,
        sampler: Sampler,
        style: PromptStyle,
        is_complete: Callable[[str], bool],
        **options: Any,
    ) -> None:
        super().__init__(role, model, sampler, style, **options)
        self._chat = chat
        self._instructions = style.instructions
        self._is_complete = is_complete

    def open(self, slot: int, problem: Problem, deadline: Deadline | None = None, sampler: Sampler | None = None) -> None:
        self._slots[slot] = Slot(slot, problem, [], Controls([]), sampler or self._sampler)

    async def _prompt_of(self, slot: Slot, trace: Trace) -> Prompt:
        problem, written = slot.problem, trace.written
        if trace.thoughts and not trace.text:
            written += self._step_end.separator
        system = (self._instructions if problem.system is None else problem.system).strip()
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": turn.role, "content": turn.text} for turn in problem.turns]
        return Dialogue([*messages, {"role": "user", "content": problem.question}], written)

    def _request(self, slot: Slot, prompt: Prompt, writing: StepSoFar, max_tokens: int) -> TextRequest:
        """Return a request. Its stop string is empty if a step may contain a separator, or if the server cannot stop there."""
        request = super()._request(slot, prompt, writing, max_tokens)
        is_first = writing.phase == "answer" and self._step_end.least == 1
        return replace(request, stop=self._step_end.separator if is_first and self._chat.can_stop else "")

    def _marker(self, phase: Phase) -> str:
        return END if self._chat.is_instructed else ""

    def _own_text(self, request: TextRequest) -> Callable[[Piece], Piece]:
        return OwnText(request.dialogue.written, self._chat)

    async def _continue(self, slot: Slot, before: StepSoFar, request: TextRequest) -> tuple[StepSoFar, StepStop | None]:
        for _ in range(MAX_ATTEMPTS):
            try:
                return await super()._continue(slot, before, request)
            except NotContinuedError:
                self._report(slot, num_unread=1)
        message = (
            f"{self._model.name} ({self._model.host.name}) repeats the solution in other words instead of continuing it"
        )
        raise ServerRequestError(message, "set another target_continuation in the pair, or use another target")

    async def _stop(self, slot: Slot, writing: StepSoFar, ending: Ending | None, request: TextRequest) -> StepStop | None:
        if ending is None:
            raise ServerRequestError(f"{self._model.host.name} sent no finish reason")
        if ending == "length":
            return "budget"
        written, separator = request.dialogue.written, self._step_end.separator
        is_blank = not writing.text.so_far.strip()
        if self._chat.is_instructed:  # an instructed model writes one step
            ending = "end" if is_blank else "separator"
        elif ending == "stop" and not request.stop:
            ending = "end"
        elif ending == "stop" and is_blank:
            ending = "end" if not written or written.endswith(separator) else "separator"
        elif ending == "stop":
            ending = "end" if await self._is_over(slot, writing, request) else "separator"
        if ending == "end":
            return "thought" if writing.phase == "think" else "end"
        self._report(slot, writing.add(Piece(separator)))
        return writing.stop

    async def _is_over(self, slot: Slot, writing: StepSoFar, request: TextRequest) -> bool:
        """Return whether the model ended the solution. If the solution may be complete, asks the model to continue without a stop string."""
        dialogue = request.dialogue + writing.text.so_far.lstrip()
        if not self._is_complete(dialogue.written):
            return False
        pieces: list[Piece] = []
        check = replace(request, prompt=dialogue, max_tokens=CHECK_TOKENS, stop="")
        await self._model.write(check, pieces.append, pieces.clear, topic=slot.topic)
        writing.usages += [piece.usage.model_copy(update={"written": 0}) for piece in pieces if piece.usage]
        own = self._own_text(check)
        return not "".join(own(piece).text for piece in pieces)
