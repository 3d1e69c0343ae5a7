"""What a chat API needs that completions do not: the prompt as messages, and a question whether the solution is complete.

A chat API renders the prompt itself. Most chat APIs omit the stop string, and do not tell whether they stopped at it or at the
end of the answer. The other model's thinking is continued as ordinary text.
"""

from dataclasses import replace

from arbitrage_cli.inference.servers.dialects import Prompt, TextRequest
from arbitrage_cli.inference.servers.received import ReceivedStep
from arbitrage_cli.inference.servers.requests import StepRequests
from arbitrage_cli.inference.servers.responses import Ending, Piece
from arbitrage_cli.inference.servers.solution import Solution
from arbitrage_cli.inference.step_text import end_of
from arbitrage_cli.types import StepStop, Trace

CHECK_TOKENS = 4  # written to find out whether a solution is complete


class ChatRequests(StepRequests):
    """The requests for one problem to a chat API."""

    async def prompt(self, trace: Trace) -> Prompt:
        problem = self._problem
        style = self._options.style
        written = trace.written
        if trace.thoughts and not trace.text:
            written += style.step_end.separator
        system = (style.instructions if problem.system is None else problem.system).strip()
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": turn.role, "content": turn.text} for turn in problem.turns]
        return Prompt(written, messages=[*messages, {"role": "user", "content": problem.question}])

    def next(self, prompt: Prompt, step: ReceivedStep, max_tokens: int, *, until_end: bool) -> TextRequest:
        """Return a request, without a stop string if a step may contain a separator."""
        request = super().next(prompt, step, max_tokens, until_end=until_end)
        is_exact = step.phase == "answer" and self._options.style.step_end.min_chars == 1
        return request if is_exact else replace(request, stop="")

    def rest(self, request: TextRequest, written: str) -> TextRequest:
        """Return a request for the first words after a response, if there are any."""
        return replace(request, prompt=request.prompt.followed_by(written), max_tokens=CHECK_TOKENS, stop="")

    def may_be_complete(self, text: str) -> bool:
        """Return false if a solution is almost certainly unfinished. With another system prompt, its form is unknown."""
        return self._problem.system is not None or self._options.may_be_complete(text)


class ChatSolution(Solution):
    """The solution of one problem that a chat API writes."""

    _requests: ChatRequests

    def _is_empty(self) -> bool:
        """Return whether a response has no text. The tokens that a chat API counts without text are hidden reasoning."""
        return not (self._step.num_earlier or self._step.pieces)

    async def _stop(self, ending: Ending, request: TextRequest) -> StepStop | None:
        if self.until_end or ending == "length":
            return await super()._stop(ending, request)
        if ending == "end" or (ending == "stop" and await self._is_over(request)):
            return end_of(self._step.phase)
        self._report(text=self._step.add(Piece(self._options.style.step_end.separator)))
        return self._step.stop

    async def _is_over(self, request: TextRequest) -> bool:
        """Return whether the solution is complete, or the server stopped at the separator."""
        if not request.stop:
            return True
        if not self._step.visible:
            written = request.prompt.text
            return not written or written.endswith(self._options.style.step_end.separator)
        return await self._writes_no_more(request)

    async def _writes_no_more(self, request: TextRequest) -> bool:
        """Return whether the solution is complete. Unless it is almost certainly unfinished, ask the model for the rest."""
        check = self._requests.rest(request, self._step.text.so_far.lstrip())
        if not self._requests.may_be_complete(check.prompt.text):
            return False
        is_over = True
        usage = None
        async for piece in self._options.model.pieces(check, self._requests.topic):
            is_over = is_over and not piece.text
            usage = piece.usage or usage  # some servers report in every chunk
        self._bill.add(usage)
        return is_over
