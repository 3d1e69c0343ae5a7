"""Builds the requests for the steps of one problem: the prompt as the server accepts it, and where the response must end.

The ids that a server sampled are kept, and only the remaining text is tokenized.
"""

import hashlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from arbitrage_cli.errors import ServerRequestError
from arbitrage_cli.inference.chat_template import ChatPrompt, Control, Plain, PromptStyle, Segment
from arbitrage_cli.inference.kv_cache import StepIds
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.servers.controls import Controls
from arbitrage_cli.inference.servers.dialects import Prompt, TextRequest
from arbitrage_cli.inference.servers.model import ServedModel
from arbitrage_cli.inference.servers.received import ReceivedStep
from arbitrage_cli.types import ModelRole, Problem, Step, Trace


@dataclass(eq=False)
class Options:
    """What all problems of a writer have in common. `think_end_ids` are set by the first problem that thinks."""

    role: ModelRole
    model: ServedModel
    style: PromptStyle
    prompt: ChatPrompt
    keep_token_stats: bool
    shares_prompts: bool
    think_end_ids: Sequence[int] = field(default=(), init=False)

    def hidden_end(self) -> ServerRequestError:
        """Return the error of a server that does not show where the thinking ends."""
        end = self.prompt.think_format.end
        return ServerRequestError(
            f"{self.model.server.name} omits '{end}', which marks the end of thinking in {self.model.name}",
            "use a newer version of vLLM, SGLang or llama-server, or --think off",
        )


class Requests(ABC):
    """The requests for one problem.

    `topic` names the problem to the server. `is_first` is true until the model has written a step. `num_prompt` counts the
    tokens of the prompt without the solution, or is None if they are unknown.
    """

    def __init__(self, options: Options, problem: Problem, sampler: Sampler) -> None:
        self._options = options
        self._model = options.model
        self._format = options.prompt.think_format
        self._problem = problem
        self._sampler = sampler
        self.topic = secrets.token_hex(8)
        self.is_first = True
        self.num_prompt: int | None = None

    @abstractmethod
    async def prompt(self, trace: Trace) -> Prompt:
        """Return the prompt of the next step. Raises ProblemError if the server cannot be sent this problem."""

    def next(self, prompt: Prompt, step: ReceivedStep, max_tokens: int, *, until_end: bool) -> TextRequest:
        """Return the request for the rest of a step or, with `until_end`, for the rest of its phase."""
        options = self._options
        prompt = prompt.followed_by(step.ids)
        return TextRequest(
            self._model.name,
            prompt,
            max_tokens,
            replace(self._sampler, seed=_seed(self._sampler.seed, self._problem.question, len(prompt))),
            num_alternatives=self._model.num_alternatives if options.keep_token_stats and not until_end else 0,
            cache_key="" if options.shares_prompts else self.topic,
            is_first=self.is_first,
            stop="" if until_end else options.style.step_end.separator,
            marker=self._format.end if step.phase == "think" or self._format.ends_turns else "",
        )

    def remember(self, step: Step, received: ReceivedStep) -> None:
        """Note a step that the model wrote."""
        self.is_first = False


class TokenRequests(Requests):
    """The requests for one problem, whose prompt consists of token ids."""

    def __init__(self, options: Options, problem: Problem, sampler: Sampler) -> None:
        super().__init__(options, problem, sampler)
        self._controls = Controls(())
        self._prompt: Prompt | None = None
        self._steps = StepIds()

    async def prompt(self, trace: Trace) -> Prompt:
        prompt = self._prompt or await self._begin()
        for step, own in self._steps.missing(trace):
            text = [] if own else [Plain(step.text)]
            after = [Control(segment.text) for segment in self._options.prompt.after(step)]
            self._steps.add(step, own + await self._ids_of([*text, *after]))
        return Prompt(ids=self._steps.after([*prompt.ids]))

    async def _begin(self) -> Prompt:
        model = self._model
        segments = await model.with_renderings(partial(self._options.prompt.for_problem, self._problem), self.topic)
        marks = [Control(self._format.opens + self._format.closes)] if self._problem.thinks else []
        self._controls = Controls([*segments, *marks], can_ignore=model.completions.can_ignore_controls)
        if self._problem.thinks and not self._options.think_end_ids:
            self._options.think_end_ids = await self._ids_of([Control(self._format.end)])
        self._prompt = await model.prompt_of(segments, self._controls, self.topic)
        self.num_prompt = len(self._prompt)
        return self._prompt

    async def _ids_of(self, segments: Sequence[Segment]) -> list[int]:
        return await self._model.ids_of(segments, self._controls, self.topic)

    def remember(self, step: Step, received: ReceivedStep) -> None:
        super().remember(step, received)
        self._steps.remember(step, self._own_ids(step, received))

    def _own_ids(self, step: Step, received: ReceivedStep) -> list[int]:
        """Return a step's ids without the ids of its marker, or [] if the text must be tokenized again."""
        ids = received.ids
        end = list(self._options.think_end_ids)
        if received.text.lacks_tokens:
            return []
        if step.phase == "answer" or not ids:
            return ids
        before = ids[:-1] if step.stop == "thought" else ids
        if len(end) == 1 and end[0] in before and not received.text.has_marker:
            raise self._options.hidden_end()
        return before if step.stop != "thought" or ids[-1:] == end else []  # marker and text may share a token


def _seed(seed: int, question: str, position: int) -> int:
    key = f"{seed}/{question}/{position}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest()) >> 1
