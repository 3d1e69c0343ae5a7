"""Prints the figures of a run, a comparison of two runs, an advice, or token costs. Defines the columns, also for the page.

Rich wraps paragraphs and cells at the width of the terminal.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TextIO

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from arbitrage_cli.app.advise import Advice
from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.costs.store import Tuned, tuned_file
from arbitrage_cli.display.text import is_drawable, one_line, safe, width_of, write, write_lines
from arbitrage_cli.display.verdict import alone, sentence, token_ratio_words
from arbitrage_cli.inference.unit_costs import ROWS
from arbitrage_cli.numbers import formatting
from arbitrage_cli.types import ByRole, Json, frozen

MAX_NAMES = 12  # problem IDs in a line
UNUSUAL = ("unscored", "errors", "missing")  # outcomes that are noted; other notes name the limits that cut solutions
MIN_PROBLEMS = 5  # for which intervals are shown


# --- columns

Show = Callable[[Any], str]
OUTCOMES: Mapping[str, str] = {"unscored": "unscored", "errors": "failed", "missing": "not attempted", "cut": "cut"}


@frozen
class Column:
    """A column with a figure and, beside it, the figure's interval. If `name` is empty, the whole record is shown."""

    heading: str
    name: str
    show: Show = formatting.number
    show_interval: Show | None = None

    @property
    def key(self) -> str:
        """The key of the column's definition."""
        return self.name or self.heading

    def cell(self, figures: Json) -> tuple[str, str]:
        beside = self.show_interval(figures[f"{self.name}_interval"]) if self.show_interval else ""
        return self.show(figures[self.name] if self.name else figures), beside


def known(columns: Sequence[Column], records: Sequence[Json]) -> list[Column]:
    """Return the columns that contain a figure for at least one record."""
    empty = ("", formatting.NO_FIGURE)
    return [column for column in columns if any(column.cell(record)[0] not in empty for record in records)]


def _points_range(interval: formatting.Bounds) -> str:
    low, high = (round(100 * end) + 0.0 for end in interval or (0, 0))  # never -0
    return f"[{low:+.0f} to {high:+.0f}]" if interval else ""


def outcomes(figures: Json, names: Iterable[str] = OUTCOMES) -> str:
    """Return counts such as `1 failed, 2 cut`."""
    return ", ".join(f"{figures[name]:,} {OUTCOMES[name]}" for name in names if figures[name])


PERCENT = formatting.percent, formatting.percent_range
POINTS = formatting.points, _points_range
TIMES = formatting.number, formatting.number_range

ACCURACY = Column("accuracy", "accuracy", *PERCENT)
DIFFERENCE = Column("diff", "accuracy_difference", *POINTS)
SECONDS = Column("mean s", "seconds_mean")
SPEEDUP = Column("speed-up", "speedup", *TIMES)
ACCEPTED = Column("accepted", "acceptance_rate", formatting.whole_percent)
PRICE: Sequence[Column] = (
    Column("price/1000", "price", lambda price: formatting.number(None if price is None else 1000 * price)),
    Column("saved", "saving", *PERCENT),
)
CALLED = Column("called", "called_rate", formatting.whole_percent)
THINKING = Column("thinking", "thinking_tokens_mean")
TERMINAL: Sequence[Column] = (ACCURACY, DIFFERENCE, SECONDS, SPEEDUP, *PRICE, ACCEPTED, CALLED, THINKING)
SPARE: Sequence[Column | None] = (SECONDS, ACCEPTED, THINKING, CALLED, PRICE[0], DIFFERENCE, PRICE[1], ACCURACY, None)
"""The columns that a narrow terminal lacks, in the order in which they are left out."""

PAGE: Mapping[str, Sequence[Column]] = {
    "Accuracy and time": (
        ACCURACY,
        Column("remarks", "", outcomes),
        DIFFERENCE,
        SPEEDUP,
        SECONDS,
        Column("clock s", "measured_seconds_mean"),
        Column("clock speed-up", "measured_speedup", *TIMES),
    ),
    "Steps and tokens": (
        ACCEPTED,
        Column("stopped early", "stopped_early_rate", formatting.whole_percent),
        CALLED,
        Column("wasted draft tokens", "wasted_draft_tokens"),
        THINKING,
    ),
    "Speed and price": (
        Column("draft tokens/s", "draft_tokens_per_second"),
        Column("target tokens/s", "target_tokens_per_second"),
        *PRICE,
    ),
}

COMPARISON: Sequence[Column] = (
    Column("n", "n", str),
    Column("correct", "correct", lambda counts: "{} -> {}".format(*counts)),
    Column("difference", "accuracy_difference", *POINTS),
    Column("speed-up", "seconds_ratio", *TIMES),
)

_EFFECTIVE = "for the effective number of attempts (Kish) if there are several samples per problem"
_OVER_PROBLEMS = "Interval: 95%, paired jackknife over problems, if there are at least 15 problems."
_WITH_COST_ERROR = f"{_OVER_PROBLEMS} It includes the error of the unit costs."

DEFINITIONS: Mapping[str, str] = {
    "accuracy": "Correct answers / attempts. Unscored answers and errors count as incorrect, but if no answer was graded, "
    f"the accuracy is unknown. Interval: 95%, Wilson, {_EFFECTIVE}.",
    "accuracy_difference": "(Correct answers of this policy - correct answers of the target alone) / attempts made by both. "
    f"Interval: 95%, paired (Newcombe), {_EFFECTIVE}.",
    "remarks": "Attempts that were unscored, that failed, that were not attempted, or that were cut: they reached a limit "
    "(max-tokens, max-steps, ctx) before the solution was complete. Cut solutions are graded, too.",
    "seconds_mean": "Computed seconds / finished attempts. The computed time of an attempt is its counted work (tokens and "
    "scores) times the unit costs measured in the run. A step that took less than half or more than twice the usual time of "
    "such steps is counted at the usual time. The time of models without measured unit costs, such as models on servers, is "
    "measured.",
    "speedup": "Computed seconds of the target alone / computed seconds of this policy, over the attempts "
    f"that both policies finished; above 1 is faster. {_WITH_COST_ERROR}",
    "measured_seconds_mean": "Wall-clock seconds / finished attempts. Excludes loading, grading and display.",
    "measured_speedup": "Wall-clock seconds of the target alone / wall-clock seconds of this policy, over the attempts that "
    f"both policies finished; above 1 is faster. {_WITH_COST_ERROR}",
    "acceptance_rate": "Accepted steps / drafted steps.",
    "stopped_early_rate": "Drafted steps that were stopped early and escalated / drafted steps.",
    "called_rate": "Share of finished attempts in which the target solved the problem, because the answers of draft and "
    "checker differ.",
    "wasted_draft_tokens": "Tokens in drafted steps that were discarded, excluding tokens drafted for speculation.",
    "thinking_tokens_mean": "Thinking tokens in kept steps / finished attempts.",
    "draft_tokens_per_second": "Tokens decoded by the draft / seconds of decoding. Excludes prefill.",
    "target_tokens_per_second": "Tokens decoded by the target / seconds of decoding. Excludes prefill and verification.",
    "price": "Price of all prompt and completion tokens / finished attempts. Tables show the price per 1,000 attempts.",
    "saving": "1 - price of this policy / price of the target alone, over the attempts that both policies finished. "
    f"{_OVER_PROBLEMS}",
}


# --- tables


def write_table(figures: Json, facts: Iterable[tuple[str, str]], stream: TextIO, *, explains: bool = False) -> None:
    """Write the facts, the table and the notes, and the definitions of its columns if `explains` is true.

    Raises the same errors as `write`.
    """
    policies, verdict = figures["policies"], figures["verdict"]
    shown = known(TERMINAL, policies)
    labels = [policy["label"] for policy in policies]
    width = width_of(stream)
    for spare in SPARE:
        table = _table(shown, policies, labels, figures["n"])
        if Console(width=sys.maxsize).measure(table).minimum <= width:
            break
        shown = [column for column in shown if column is not spare]
    notes = [f"{one['label']}: {found} of {one['n']:,}" for one in policies if (found := outcomes(one, UNUSUAL))]
    notes += figures["notes"]
    definitions = [(column.heading, DEFINITIONS[column.key]) for column in shown]
    print_to(
        stream,
        paragraph(f"{figures['dataset']}: {size_of(figures)}", "bold"),
        *(pairs(facts, "dim"), ""),
        table,
        *(("", paragraph(sentence(figures), "bold")) if verdict else ()),
        *(("", bullets(notes)) if notes else ()),
        *(("", pairs(definitions)) if explains else ()),
    )


def write_comparison(comparison: Json, stream: TextIO) -> None:
    """Write the comparison of two runs. Raises the same errors as `write`."""
    entries, (first, second) = comparison["policies"], comparison["runs"]
    names = " against ".join(dict.fromkeys(comparison["dataset"]))
    count = max(entry["n"] for entry in entries)
    print_to(
        stream,
        *(paragraph(f"{names}: first {first}, second {second}", "bold"), ""),
        *(_table(COMPARISON, entries, [*map(_pair_label, entries)], count), ""),
        bullets([*(change for entry in entries for change in _changes(entry)), *comparison["notes"]]),
    )


def size_of(figures: Json) -> str:
    """Return a run's size, such as `40 of 500 problems x 3 samples, 2 at once`."""
    whole = formatting.count(figures["dataset_size"], "problem")
    problems = whole if figures["n"] == figures["dataset_size"] else f"{figures['n']:,} of {whole}"
    samples = f" x {figures['samples']} samples" if figures["samples"] > 1 else ""
    at_once = f", {figures['concurrency']} at once" if figures["concurrency"] > 1 else ""
    return problems + samples + at_once


def _table(shown: Sequence[Column], records: Sequence[Json], labels: Sequence[str], num_problems: int) -> Table:
    """Make a table with intervals below their figures, if there are enough problems for intervals."""
    cells = [[column.cell(record) for column in shown] for record in records]
    if num_problems < MIN_PROBLEMS:
        cells = [[(figure, "") for figure, _ in row] for row in cells]
    ranged = [any(interval for _, interval in column) for column in zip(*cells, strict=True)]
    rows = [[label, *("\n".join(filter(None, cell)) for cell in row)] for label, row in zip(labels, cells, strict=True)]
    return table_of(["policy", *(column.heading for column in shown)], rows, [True, *ranged])


def _pair_label(entry: Json) -> str:
    return " / ".join(dict.fromkeys((entry["first"], entry["second"])))


def _changes(entry: Json) -> Iterator[str]:
    for name in ("fixed", "broken"):
        if ids := entry[name]:
            named = ", ".join([*ids[:MAX_NAMES], *(["..."] if len(ids) > MAX_NAMES else [])])
            yield f"{_pair_label(entry)}, {name} ({len(ids)}): {named}"
    if entry["only_first"] or entry["only_second"]:
        counts = f"{entry['only_first']} only in the first run, {entry['only_second']} only in the second"
        yield f"{entry['first']}: {counts}, not compared"


# --- printing


def print_to(stream: TextIO, *parts: RenderableType) -> None:
    """Print paragraphs and tables, with styles if the stream is a terminal. Raises the same errors as `write`."""
    is_styled = is_drawable(stream)
    colors: Literal["standard"] | None = "standard" if is_styled else None
    console = Console(width=width_of(stream), force_terminal=is_styled, color_system=colors)
    with console.capture() as capture:
        console.print(Group(*parts), crop=False)
    write(stream, "".join(f"{line.rstrip()}\n" for line in capture.get().removesuffix("\n").split("\n")))


def paragraph(text: str, style: str = "") -> Text:
    return Text(one_line(text), style)


def pairs(rows: Iterable[tuple[str, str]], style: str = "", gap: int = 2) -> Table:
    """Make a table of names and texts, without headings."""
    table = Table.grid(padding=(0, gap, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(paragraph(name, style), paragraph(text, style))
    return table


def bullets(texts: Iterable[str]) -> Table:
    return pairs((("-", text) for text in texts), gap=1)


def table_of(headings: Sequence[str], rows: Sequence[Sequence[str]], is_left: Iterable[bool] = ()) -> Table:
    """Make a table. By default, only the first column is left-aligned. Only this column may be wrapped, between words."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    sides = ("left" if one else "right" for one in is_left or [index == 0 for index, _ in enumerate(headings)])
    for index, (heading, side, *cells) in enumerate(zip(headings, sides, *rows, strict=True)):
        width = max(len(line) for cell in (heading, *cells) for line in cell.split("\n"))
        least = width if index else max(len(word) for cell in (heading, *cells) for word in cell.split())
        table.add_column(paragraph(heading), "", min_width=least, no_wrap=index > 0, overflow="fold", justify=side)
    for row in rows:
        table.add_row(*(Text(safe(cell)) for cell in row))
    return table


PROPOSALS = "Compatible models on this machine, best pair first. To find out whether a pair is worth using:"
BUILT_IN_PAIR = "For the built-in pair, use arbitrage advise --pair builtin."
MORE = "To get one, use more problems, a larger --minutes, --max-tokens 300 for short answers, or --threads 1 on a busy machine."


def write_advice(advice: Advice, stream: TextIO) -> None:
    """Write the table, the verdict and the next command. Raises the same errors as `write`."""
    figures = advice.figures
    if figures["n"]:
        ratio, interval = figures["token_ratio"], figures["token_ratio_interval"]
        write_table({**figures, "verdict": None}, [("costs", token_ratio_words(ratio, interval))] if ratio else [], stream)
    texts = [alone(figures), sentence(figures), MORE if advice.confidence is None else ""]
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
    write(stream, f"measurements are kept in {tuned_file()}\n")
