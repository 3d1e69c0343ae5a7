"""When a drafted step is looked at before its end, and what stops it there. Knows numbers; no head, no model and no text."""

LOOK_EVERY = 2  # tokens
ODDS = 1.5  # times the odds of tau stop a step: a head is trained on whole steps, and less sure of beginnings


def is_due(num_tokens: int) -> bool:
    """Whether to look at a step after so many tokens."""
    return num_tokens % LOOK_EVERY == 0


def clearly_above(tau: float) -> float:
    """The probability above which a beginning stops a step. A tau outside 0 to 1 escalates always or never: it stays as it is."""
    return ODDS * tau / (1 + (ODDS - 1) * tau) if 0 < tau < 1 else tau
