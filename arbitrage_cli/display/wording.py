"""The words that plain and live display share: one place for each phrase about a decision, a tally or a result.

Knows no terminal: plain text in, plain text out.
"""

from arbitrage_cli.display import one_line
from arbitrage_cli.runs.records import RunInfo, problem_error
from arbitrage_cli.runs.summary import Tally
from arbitrage_cli.types import Cost, Decision, Finished, ModelRole, Step

TOY_NOTICE = "These are scripted demo models, not language models: they only know one line of arithmetic."
REAL_MODELS_HINT = "For real ones: --draft DRAFT.gguf --target TARGET.gguf"


def models(run: RunInfo) -> list[str]:
    """One line for each model."""
    return [f"{role:<6} {one_line(text)}" for role, text in run.descriptions.items()]


def rule(run: RunInfo) -> str:
    """What the policy does with a step."""
    if run.number is None and run.policy == "speculative":
        return f"policy {run.policy}: the target writes every step, and the draft says what may come next"
    if run.number is None:
        return f"policy {run.policy}: the {run.policy} model alone writes every step"
    head = f" (head {one_line(run.settings['head'])})" if run.settings.get("head") else ""
    return f"policy {run.policy}{head}: the target rewrites a step when the {run.number} is above tau = {run.tau:g}"


def comparison(decision: Decision, run: RunInfo) -> str:
    """The number beside tau, e.g. `entropy 1.43 > 1`; empty where nothing was compared."""
    if decision.probability is None or run.tau is None:
        return ""
    sign = ">" if decision.probability > run.tau else "≤"
    return f"{run.policy} {_rounded(decision.probability, run.tau)} {sign} {run.tau:g}"


def _rounded(number: float, tau: float) -> str:
    """With as few digits as still tell on which side of tau it is."""
    forms = (f"{number:{form}}" for form in (".2f", ".3g", ".6g"))
    return next((text for text in forms if (float(text) > tau) == (number > tau)), repr(number))


def size(step: Step) -> str:
    """Tokens and seconds of one step, and whether it was stopped before it was finished."""
    return f"{step.num_tokens} tokens {step.seconds:.2f} s" + (", stopped early" if step.stop == "early" else "")


def acceptance(figures: Tally) -> str:
    """How many drafted steps were kept, as a fraction with both its parts."""
    if not figures.drafted_steps:
        return f"{figures.target_steps} steps"
    return f"accepted {figures.accepted_steps}/{figures.drafted_steps} steps ({figures.acceptance_rate or 0:.0%})"


def tokens(figures: Tally) -> str:
    """Tokens drafted, thrown away, and written by the target."""
    parts = []
    if figures.drafted_steps:
        parts.append(f"drafted {figures.drafted_tokens}, wasted {figures.wasted_tokens}")
    if figures.target_steps:
        parts.append(f"by target {figures.target_tokens}")
    return "tokens: " + ", ".join(parts) if parts else "no tokens yet"


def speeds(figures: Tally) -> str:
    """Decoding speed of each model; empty before anything was decoded."""
    costs: dict[ModelRole, Cost] = {"draft": figures.draft_cost, "target": figures.target_cost}
    known = [(role, cost.tokens_per_second) for role, cost in costs.items()]
    return ", ".join(f"{role} {speed:.1f} tokens/s" for role, speed in known if speed is not None)


def time(finished: Finished, figures: Tally, run: RunInfo) -> str:
    """Seconds in the models, beside the estimate for the target alone, which is named as an estimate."""
    took = f"{figures.seconds:.2f} s"
    alone = finished.target_alone_seconds
    if alone is None or run.number is None or run.is_toy or figures.seconds <= 0:
        return took
    return (
        f"{took}; the target alone: about {alone:.2f} s, {alone / figures.seconds:.2f}x (estimate: same text at its speed)"
    )


def failure(finished: Finished) -> str:
    """What went wrong with a problem and what to do, in one line; empty if nothing did."""
    error = problem_error(finished)
    return one_line(f"problem {finished.trace.problem.id}: {'; '.join(filter(None, error))}") if error else ""


def total(figures: Tally, num_solved: int, num_failed: int) -> str:
    """One line about many problems."""
    counts = f"{num_solved + num_failed} problems" + (f", {num_failed} failed" if num_failed else "")
    facts = (counts, acceptance(figures), tokens(figures), speeds(figures), f"{figures.seconds:.2f} s")
    return "; ".join(filter(None, facts))


def ending(finished: Finished) -> str:
    """What to say of a solution that did not end by itself; empty if it did."""
    limits = {"max_steps": "--max-steps", "max_tokens": "--max-tokens"}
    option = limits.get(finished.trace.stop or "")
    return f"stopped at the limit {option}" if option else ""
