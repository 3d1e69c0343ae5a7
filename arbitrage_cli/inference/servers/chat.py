"""Requests whole solutions from a chat API, which renders prompts itself.

Its models do not think: the thinking phase of a solution is empty, and the response is the answer.
"""

from arbitrage_cli.arbitrage import WriteStep
from arbitrage_cli.errors import ServerRequestError
from arbitrage_cli.inference.servers.dialects import Prompt
from arbitrage_cli.inference.servers.requests import Requests
from arbitrage_cli.inference.servers.solution import Solution
from arbitrage_cli.types import Trace


class ChatRequests(Requests):
    """The requests for one problem to a chat API."""

    async def prompt(self, trace: Trace) -> Prompt:
        """Return the messages. Raises ServerRequestError if a part of the solution is complete."""
        if trace.text:
            name = self._model.server.name
            raise ServerRequestError(f"{name} interrupted a response, which a chat API cannot continue", "try again")
        problem = self._problem
        system = (self._options.style.instructions if problem.system is None else problem.system).strip()
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": turn.role, "content": turn.text} for turn in problem.turns]
        return Prompt(messages=[*messages, {"role": "user", "content": problem.question}])


class ChatSolution(Solution):
    """The solution of one problem that a chat API writes."""

    def begin(self, request: WriteStep) -> None:
        super().begin(request)
        if self.trace.phase == "think":
            self.begin_step()
            self._keep("thought")

    def _is_empty(self) -> bool:
        """Return whether a response has no text. The tokens that a chat API counts without text are hidden reasoning."""
        return not (self._step.num_earlier or self._step.pieces)
