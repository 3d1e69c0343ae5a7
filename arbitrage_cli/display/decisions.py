"""The lines about one decision: the choice, the step, and the explanation of the score."""

from collections.abc import Iterator
from difflib import unified_diff
from itertools import islice

from arbitrage_cli.display import wording
from arbitrage_cli.display.text import COLORS, Line, shortened
from arbitrage_cli.runs.records import RunInfo
from arbitrage_cli.types import Attribution, Trace

MAX_THOUGHT = 160  # characters
MARGIN = "     "
DIFF_HEADER = 3  # lines before the changes
CHANGES = {" ": "", "-": "red strike", "+": "bold green"}  # the marks distinguish them without styles, too
MAX_FEATURES = 5  # features named in an explanation
CHOICES = {"accept": "green", "escalate": "yellow", None: ""}


def decision_lines(trace: Trace, index: int, run: RunInfo, prefix: str = "") -> Iterator[Line]:
    """Yield a line about the decision at an index, the text of the step, and its explanation, if there is one.

    `prefix` names the problem if several are solved at once.
    """
    decision = trace.decisions[index]
    kept, discarded = decision.kept, decision.discarded
    color = CHOICES[decision.choice]
    is_same = wording.is_same(decision)
    same_text = "  same text" if is_same else ""
    draft = f", {discarded.model} {wording.size(discarded)}" if discarded else ""
    facts = [
        (f"  {decision.choice or '':<8}", color),
        (f"  {wording.bar(decision, run)}", color),
        (f"  {wording.comparison(decision, run)}{same_text}", ""),
        (f"  {wording.size(kept)}{draft}", "dim"),
    ]
    shown = [fact for fact in facts if fact[0].strip()]
    yield Line.of((f"{prefix}{index + 1:>3}  ", "bold"), (f"{kept.model:<6}", COLORS[kept.model]), *shown, hanging=MARGIN)
    if kept.phase == "think":
        yield Line.block(shortened(kept.text.strip(), MAX_THOUGHT), "dim", margin=MARGIN)
    elif discarded is None or is_same:
        yield Line.block(kept.text, margin=MARGIN)
    else:
        yield from _changes(discarded.text, kept.text)
    if run.explain and (attribution := run.explain(trace, index)):
        yield Line.of((log_odds(attribution), "dim"), margin=MARGIN)


def log_odds(attribution: Attribution) -> str:
    shown = [("an average step", attribution.average_step)]
    shown += [(name.replace("_", " "), value) for name, value in attribution.features[:MAX_FEATURES]]
    # The rest is computed from rounded terms, so that the shown terms add up.
    rest = round(attribution.log_odds, 2) - sum(round(value, 2) for _, value in shown)
    if len(attribution.features) > MAX_FEATURES:
        shown.append(("all other features", rest))
    return f"log-odds {attribution.log_odds:+.2f}: " + "; ".join(f"{value:+.2f} {words}" for words, value in shown)


def _changes(before: str, after: str) -> Iterator[Line]:
    """Yield the lines of the second text, with deleted lines struck through and new lines in bold."""
    changes = unified_diff(before.splitlines(), after.splitlines(), n=len(before), lineterm="")
    for line in islice(changes, DIFF_HEADER, None):
        if line[1:].strip():
            yield Line.of((line[1:], CHANGES[line[0]]), margin=f"   {line[0]} ")
