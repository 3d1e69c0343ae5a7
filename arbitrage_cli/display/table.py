"""Prints the figures of a run, a comparison of two runs, advice, or token costs."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO, TypeVar

from rich.console import RenderableType
from rich.table import Table

from arbitrage_cli.app.commands.advise import Advice
from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.costs.store import Tuned, tuned_file
from arbitrage_cli.display.columns import Column, cell, columns_of, known, outcomes, size_of
from arbitrage_cli.display.printing import bullets, fits, pairs, paragraph, print_to, table_of
from arbitrage_cli.display.text import one_line, write, write_lines
from arbitrage_cli.display.verdict import alone, more_time, sentence, token_ratio_words
from arbitrage_cli.evaluation.comparison import Comparison, PolicyComparison
from arbitrage_cli.evaluation.figures import PolicyFigures, shown_figures
from arbitrage_cli.evaluation.metrics import RunFigures
from arbitrage_cli.evaluation.verdict import MIN_PROBLEMS
from arbitrage_cli.inference.unit_costs import ROWS
from arbitrage_cli.numbers import formatting
from arbitrage_cli.types import ByRole

MAX_NAMES = 12  # problem IDs in a line

T = TypeVar("T")

TERMINAL = (
    "accuracy",
    "accuracy_difference",
    "seconds_mean",
    "speedup",
    "price",
    "saving",
    "acceptance_rate",
    "called_rate",
    "thinking_tokens_mean",
)
"""The figures that a terminal shows."""
SPARE = (
    "seconds_mean",
    "acceptance_rate",
    "thinking_tokens_mean",
    "called_rate",
    "price",
    "accuracy_difference",
    "saving",
    "accuracy",
)
"""The figures that a narrow terminal lacks, in the order in which they are left out."""

COMPARISON: Sequence[Column[PolicyComparison]] = (
    Column("n", "n", lambda entry: (str(entry.n), "")),
    Column(
        "correct",
        "correct",
        lambda entry: ("{} -> {}".format(*entry.correct) if entry.correct else formatting.NO_FIGURE, ""),
    ),
    Column("accuracy_difference", "difference", lambda entry: cell("points", entry.accuracy_difference)),
    Column("seconds_ratio", "speed-up", lambda entry: cell("times", entry.seconds_ratio)),
    Column("work_ratio", "ratio of work", lambda entry: cell("times", entry.work_ratio)),
)
SPARE_COMPARISON = ("work_ratio", "n", "correct", "accuracy_difference")
"""The columns of a comparison that a narrow terminal lacks, in the order in which they are left out."""


def write_table(
    found: RunFigures,
    facts: Iterable[tuple[str, str]],
    stream: TextIO,
    *,
    has_verdict: bool = True,
    explains: bool = False,
) -> None:
    """Write the facts, the table, the verdict and the notes, and the definitions of its columns if `explains` is true.

    Raises the same errors as `write`.
    """
    labels = [policy.route.label for policy in found.policies]
    shown = _fitting(columns_of(TERMINAL, found.policies), SPARE, found.policies, labels, found.n, stream)
    parts: list[RenderableType] = [
        paragraph(f"{found.dataset}: {size_of(found)}", "bold"),
        pairs(facts, "dim"),
        "",
        _table(shown, found.policies, labels, found.n),
    ]
    if has_verdict and found.verdict:
        parts += ["", paragraph(sentence(found), "bold")]
    if notes := [*_unusual_outcomes(found.policies), *found.notes]:
        parts += ["", bullets(notes)]
    if explains:
        definitions = [(column.heading, shown_figures()[column.name].definition) for column in shown]
        parts += ["", pairs(definitions)]
    print_to(stream, *parts)


def _unusual_outcomes(policies: Iterable[PolicyFigures]) -> Iterator[str]:
    for policy in policies:
        if counts := outcomes(policy, with_cut=False):
            yield f"{policy.route.label}: {counts} of {policy.n:,}"


def write_comparison(comparison: Comparison, first: str, second: str, stream: TextIO) -> None:
    """Write the comparison of the runs in two folders. Raises the same errors as `write`."""
    entries = comparison.policies
    names = " against ".join(map(str, dict.fromkeys(comparison.dataset)))
    changes = [change for entry in entries for change in _changes(entry)]
    labels = [_pair_label(entry) for entry in entries]
    num_problems = max(entry.n for entry in entries)
    shown = _fitting(known(COMPARISON, entries), SPARE_COMPARISON, entries, labels, num_problems, stream)
    print_to(
        stream,
        paragraph(f"{names}: first {first}, second {second}", "bold"),
        "",
        _table(shown, entries, labels, num_problems),
        "",
        bullets([*changes, *comparison.notes]),
    )


def _fitting(
    columns: Sequence[Column[T]],
    spare: Iterable[str],
    records: Sequence[T],
    labels: Sequence[str],
    num_problems: int,
    stream: TextIO,
) -> Sequence[Column[T]]:
    """Return the columns without those of `spare` that have no place in the stream. They are left out in this order."""
    for name in spare:
        if fits(_table(columns, records, labels, num_problems), stream):
            break
        columns = [column for column in columns if column.name != name]
    return columns


def _table(shown: Sequence[Column[T]], records: Sequence[T], labels: Sequence[str], num_problems: int) -> Table:
    """Make a table with intervals below their figures, if there are enough problems for intervals."""
    cells = [[column.cell(record) for column in shown] for record in records]
    if num_problems < MIN_PROBLEMS:
        cells = [[(figure, "") for figure, _ in row] for row in cells]
    ranged = [any(interval for _, interval in column) for column in zip(*cells, strict=True)]
    rows = [[label, *("\n".join(filter(None, cell)) for cell in row)] for label, row in zip(labels, cells, strict=True)]
    return table_of(["policy", *(column.heading for column in shown)], rows, [True, *ranged])


def _pair_label(entry: PolicyComparison) -> str:
    return " / ".join(dict.fromkeys((entry.first, entry.second)))


def _changes(entry: PolicyComparison) -> Iterator[str]:
    for name, ids in (("fixed", entry.fixed), ("broken", entry.broken)):
        if ids:
            more = ", ..." if len(ids) > MAX_NAMES else ""
            named = ", ".join(ids[:MAX_NAMES]) + more
            yield f"{_pair_label(entry)}, {name} ({len(ids)}): {named}"
    if entry.only_first or entry.only_second:
        counts = f"{entry.only_first} only in the first run, {entry.only_second} only in the second"
        yield f"{entry.first}: {counts}, not compared"


PROPOSALS = "Compatible models on this machine, best pair first. To find out whether a pair is worth using:"
BUILT_IN_PAIR = "For the built-in pair, use arbitrage advise --pair builtin."


def write_advice(advice: Advice, stream: TextIO) -> None:
    """Write the table, the verdict and the next command. Raises the same errors as `write`."""
    found = advice.figures
    if found.n:
        ratio = found.token_ratio
        facts = [("costs", token_ratio_words(ratio.value, ratio.interval))] if ratio.value else []
        write_table(found, facts, stream, has_verdict=False)
    elif found.notes:
        print_to(stream, "", bullets(found.notes))
    texts = [alone(found), sentence(found), more_time(advice)]
    print_to(stream, "", paragraph(" ".join(filter(None, texts))), "")
    write(stream, f"  {advice.command}\n")


def write_proposals(commands: Sequence[str], stream: TextIO) -> None:
    """Write commands that test pairs of the models on this machine. Raises the same errors as `write`."""
    write_lines(stream, [PROPOSALS, "", *(f"  {one_line(command)}" for command in commands), "", BUILT_IN_PAIR])


def write_costs(found: ByRole[Tuned], stream: TextIO) -> None:
    """Write the unit costs of each model as speeds, and the token ratio. Raises the same errors as `write`."""
    rows = []
    for role, model in found.items():
        sizes = zip((1, *ROWS), (model.costs.prefill, *model.costs.batches), strict=True)
        rows.append([role, str(model.threads), *(formatting.number(size / seconds) for size, seconds in sizes)])
    headings = ["tokens/s", "threads", "prefill", "decode", *(f"batch of {size}" for size in ROWS[1:])]
    pair = PairCosts.of({role: model.costs for role, model in found.items()})
    words = [token_ratio_words(pair.token_ratio, pair.token_ratio_interval)] if pair else []
    print_to(stream, table_of(headings, rows), "", *map(paragraph, words))
    write(stream, f"the measurements are stored in {tuned_file()}\n")
