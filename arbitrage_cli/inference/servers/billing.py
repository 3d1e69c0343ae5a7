"""Charges the tokens of every response to a step, so that nothing that a server wrote is free.

- A step that is kept is charged what its responses used, and what was spent before on responses that became no step.
- A step that is cut off, because its problem ended or its server failed, is charged the same, but no time.
- A response that is interrupted becomes no step. The step that is written instead is charged for it.

A server reports at the end of a response how many tokens it used. Until then, the tokens that have arrived are counted, and
those of the prompt if it was sent as token ids.
"""

import time
from dataclasses import dataclass, field, replace

from arbitrage_cli.inference.servers.dialects import Prompt
from arbitrage_cli.inference.servers.received import ReceivedStep
from arbitrage_cli.inference.servers.responses import ReportedUsage
from arbitrage_cli.types import Cost


@dataclass(slots=True)
class Bill:
    """What a problem's responses cost that are not yet part of a step.

    `spent` is the cost of responses that became no step. `num_unreported` counts the prompt tokens of a response that has
    begun and not ended.
    """

    spent: Cost = field(default_factory=Cost)
    num_unreported: int = 0

    def note_arrival(self, prompt: Prompt) -> None:
        """Note that a part of a response arrived, so that the server must have read the prompt."""
        self.num_unreported = len(prompt.ids)

    def note_end(self, usage: ReportedUsage | None, step: ReceivedStep) -> None:
        """Charge the step what its response used, without the tokens of the response's earlier steps."""
        self.num_unreported = 0
        if usage:
            num_own = max(0, usage.cost.decode_tokens - step.num_earlier)
            step.reported += replace(usage.cost, decode_tokens=num_own)

    def add(self, usage: ReportedUsage | None) -> None:
        """Add a response that is not part of a step."""
        self.spent += usage.cost if usage else Cost()

    def kept(self, step: ReceivedStep) -> Cost:
        """Return the cost of a step that is kept, and begin the bill of the next step."""
        cost = self.spent + _cost_of(step)
        self.spent = Cost()
        return cost

    def cut(self, step: ReceivedStep) -> Cost:
        """Return the cost of a step that is cut off. Its time belongs to the step that replaces it, if any."""
        received = replace(_cost_of(step), prefill_seconds=0.0, decode_seconds=0.0)
        return self.spent + received + Cost(prefill_tokens=self.num_unreported)

    def retract(self, step: ReceivedStep) -> None:
        """Charge a step that will be written again to the step that replaces it."""
        self.spent = self.cut(step)
        self.num_unreported = 0


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
