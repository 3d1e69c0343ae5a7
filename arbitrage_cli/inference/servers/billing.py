"""Charges the tokens of every response to a step, so that nothing that a server wrote is free.

- A step that is kept is charged what its responses used, and what was spent before on responses that became no step.
- A step that is cut off, because its problem ended or its server failed, is charged the same, but no time.
- A response that is interrupted becomes no step. The step that is written instead is charged for it.

Most servers report only at the end of a response how many tokens it used. Until then, the tokens that have arrived are
counted, and those of the prompt if it was sent as token ids. Otherwise, the prompt of an unfinished response is charged as many
tokens as the server reports for the request that repeats it.
"""

import time
from dataclasses import dataclass, field, replace

from arbitrage_cli.inference.servers.dialects import Prompt
from arbitrage_cli.inference.servers.received import ReceivedStep
from arbitrage_cli.inference.servers.responses import ReportedUsage
from arbitrage_cli.types import Cost


@dataclass(slots=True)
class Bill:
    """The cost of a problem's responses that are not yet part of a step.

    `spent` is the cost of responses that became no step. `prompt` and `usage` belong to a response that has begun and not
    ended. `num_unknown` counts the responses whose prompts have not been charged, because no response has ended since.
    """

    spent: Cost = field(default_factory=Cost)
    prompt: Prompt | None = None
    usage: ReportedUsage | None = None
    num_unknown: int = 0

    @property
    def usage_so_far(self) -> ReportedUsage | None:
        """The tokens that the current response is known to have used: as reported, or those of the prompt that was sent."""
        if self.usage is None and self.prompt and self.prompt.ids:
            return ReportedUsage(prompt=len(self.prompt))
        return self.usage

    def note_arrival(self, prompt: Prompt, usage: ReportedUsage | None) -> None:
        """Note that a part of a response arrived, so that the server must have read the prompt."""
        self.prompt = prompt
        self.usage = usage or self.usage

    def note_end(self, step: ReceivedStep) -> None:
        """Charge the step for the tokens that its response used, without those of the response's earlier steps."""
        usage = self.usage_so_far
        if usage and self.prompt:
            num_own = max(0, usage.cost.decode_tokens - step.num_earlier)
            step.reported += replace(usage.cost, decode_tokens=num_own)
            self.spent += Cost(prefill_tokens=self.num_unknown * usage.prompt)
            self.num_unknown = 0
        self.prompt = None
        self.usage = None

    def kept(self, step: ReceivedStep) -> Cost:
        """Return the cost of a step that is kept, and begin the bill of the next step."""
        cost = self.spent + _cost_of(step)
        self.spent = Cost()
        return cost

    def cut(self, step: ReceivedStep) -> Cost:
        """Return the cost of a step that is cut off. Its time belongs to the step that replaces it, if any."""
        self.note_end(step)
        return self.spent + replace(_cost_of(step), prefill_seconds=0.0, decode_seconds=0.0)

    def retract(self, step: ReceivedStep) -> None:
        """Charge a step that will be written again to the step that replaces it."""
        if self.prompt and not self.usage_so_far:
            self.num_unknown += 1
        self.spent = self.cut(step)


def _cost_of(step: ReceivedStep) -> Cost:
    """Return the tokens of a step and local times. The time before the first output token counts as prefill."""
    now = time.perf_counter()
    first = step.first_at if step.first_at is not None and len(step.pieces) > 1 else step.began
    return replace(
        step.reported,
        prefill_seconds=first - step.began,
        decode_tokens=step.num_tokens,
        decode_seconds=now - first,
    )
