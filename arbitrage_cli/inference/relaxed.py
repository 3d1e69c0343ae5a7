"""Relaxed acceptance: keeps a drafted token that the target finds nearly as likely as its own choice.

At each position, the draft's choice is compared with the target's. A difference is kept if its score is at most tau, so the
text depends on the models, tau and the problem, but not on how many tokens the draft proposes at once. Token ids cross from
one engine to another here, so both models need the same vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from arbitrage_cli.inference.acceptance import Calibration
from arbitrage_cli.inference.backend import Floats, Tokenizer
from arbitrage_cli.inference.speculation import Speculator
from arbitrage_cli.types import Difference


@dataclass(slots=True)
class Relaxation:
    """Relaxed acceptance in one step. `drafted` contains the draft's choices, with their probabilities, at the next positions.

    After `most_tokens` tokens of the step, the draft's context is full.
    """

    drafter: Speculator
    tau: float
    calibration: Calibration
    tokenizer: Tokenizer
    drafted: list[tuple[int, float]] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    most_tokens: int | None = None

    @property
    def proposed(self) -> list[int]:
        """The tokens to verify: all drafted tokens except the last, which is only compared with the target's choice."""
        return [token for token, _ in self.drafted[:-1]]

    def choose(self, logits: Floats, own: int, position: int, ends: Callable[[int], bool]) -> int:
        """Return the drafted token at a position of the step if it is kept, or else the target's `own` choice.

        `ends` returns whether a token ends the solution or its thinking. If only one of the two tokens does, the target's
        choice stands. If both do, they count as equal. At tau 0, the target's choice stands even if the drafted token is as
        likely.
        """
        drafted, confidence = self.drafted.pop(0)
        is_equal, can_differ = drafted == own, False
        if not is_equal:
            is_end, is_drafted_end = ends(own), ends(drafted)
            is_equal = is_end and is_drafted_end
            can_differ = not is_end and not is_drafted_end and drafted < len(logits)  # vocabularies may be padded
        score = float(logits[own]) - float(logits[drafted]) if can_differ else 0.0
        is_kept = can_differ and self.tau > 0 and score <= self.tau
        self.calibration.record(confidence, matched=is_equal or is_kept)
        if not is_kept:
            return own
        text, target_text = (self.tokenizer.piece(token).decode("utf-8", errors="replace") for token in (drafted, own))
        self.differences.append(Difference(position, text, target_text, score))
        return drafted
