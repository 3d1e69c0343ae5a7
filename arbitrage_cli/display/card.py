"""The card of a router's head for a terminal: what it is, how good it is, and what each tau would do. At most 80 columns.

Plain text, made of the card's JSON and nothing else; a card comes from a file, so its texts are data.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from arbitrage_cli.display import one_line, rounding, write

WIDTH = 79
FIXED = ("always", "never")  # they have no order: nothing to show at a rate
SHOWN_RATES = (20, 30, 40, 60)  # of those that are on the card
SHOWN_TAUS = 9  # beside those with a name

Card = Mapping[str, Any]
Row = Mapping[str, Any]


def write_card(card: Card, times: Mapping[float, float | None], stream: TextIO) -> None:
    """Write the card. `times` has the expected time of each tau of the table, as a share of the target's alone.

    ReaderGoneError, OutputError as `write`.
    """
    write(stream, "".join(f"{line}\n" for line in _lines(card, times)))


def write_taus(taus: Card, times: Mapping[float, float | None], stream: TextIO, *, on: str, costs_of: str) -> None:
    """Write only the table of taus: which states they were tried `on`, and whose costs the times are by. Errors as above."""
    write(stream, "".join(f"{line}\n" for line in _taus(taus, times, one_line(on), costs_of)))


def _lines(card: Card, times: Mapping[float, float | None]) -> Iterator[str]:
    yield from _about(card)
    yield ""
    yield "on the test problems [95% over problems]"
    yield from _quality(card["metrics"]["test"])
    yield ""
    yield from _at_rates(
        card["metrics"]["test"], "recall", "of the steps worth escalating, % caught when so many % are escalated"
    )
    yield ""
    yield from _at_rates(
        card["metrics"]["test"], "oracle_share", "of the oracle's gain over random, % kept when so many % are escalated"
    )
    yield ""
    yield from _taus(card["taus"], times, "the same problems", "the machine that collected")


def _about(card: Card) -> Iterator[str]:
    metrics, parts = card["metrics"], card["data"]["parts"]
    made = metrics["architecture"]
    units = made["recipe"]["units"]
    form = f"{made['members']} networks of {units} units, averaged" if units else "logistic regression"
    yield from _wrapped(f"{one_line(card['name'])}: {form}; inputs: {made['inputs']}; calibration: {metrics['calibration']}")
    for pair in card["pairs"]:
        draft, target = (one_line(str(pair[role]["name"])) for role in ("draft", "target"))
        yield from _wrapped(f"draft {draft}, target {target}; reward: {one_line(str(card['reward'].get('kind')))}")
    for name, part in parts.items():
        share = rounding.percent(part["improvable"] / part["states"])
        counts = f"{rounding.count(part['problems'], 'problem')}, {rounding.count(part['states'], 'state')}"
        yield f"{name}: {counts}, {share} worth escalating"


def _quality(test: Mapping[str, Card]) -> Iterator[str]:
    shown = {"auc": ("AUC", 1, 3), "spearman": ("Spearman", 1, 2), "ece": ("calibration error", 1, 3)}
    yield from _table("", test, shown)
    yield ""
    classes = {"accept_accuracy": ("accept class %", 100, 0), "escalate_accuracy": ("escalate class %", 100, 0)}
    yield from _table("right on", test, classes)


def _at_rates(test: Mapping[str, Card], measure: str, title: str) -> Iterator[str]:
    yield title
    ordered = {number: figures for number, figures in test.items() if number not in FIXED}
    yield from _table("", ordered, {f"{measure}_{rate}": (f"at {rate}%", 100, 0) for rate in SHOWN_RATES})


def _table(corner: str, test: Mapping[str, Card], shown: Mapping[str, tuple[str, int, int]]) -> Iterator[str]:
    """A row for each number that was measured: its figures times a factor, with so many digits."""
    rows = [
        [one_line(number), *(_figure(figures.get(name), factor, digits) for name, (_, factor, digits) in shown.items())]
        for number, figures in test.items()
    ]
    yield from _aligned([corner, *(heading for heading, _, _ in shown.values())], rows, align_left=True)


def _figure(figure: Sequence[float | None] | None, factor: int, digits: int) -> str:
    """`0.941 [0.93 0.95]`: the interval without a sign in between, since figures may be negative."""
    value, low, high = figure or (None, None, None)
    if value is None:
        return rounding.UNKNOWN
    shown = _rounded(factor * value, digits)
    if low is None or high is None:
        return shown
    ends = min(digits, 2)
    return f"{shown} [{_rounded(factor * low, ends)} {_rounded(factor * high, ends)}]"


def _rounded(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # no negative zero


def _taus(taus: Card, times: Mapping[float, float | None], on: str, costs_of: str) -> Iterator[str]:
    names: dict[float, list[str]] = {}
    for name, tau in taus["named"].items():
        names.setdefault(tau, []).append(name)
    rows = taus["rows"]
    wanted = {rows[round(index * (len(rows) - 1) / (SHOWN_TAUS - 1))]["tau"] for index in range(SHOWN_TAUS)}
    shown = [row for row in rows if row["tau"] in wanted or row["tau"] in names]
    solutions = f"{rounding.count(taus['num_solutions'], 'solution')} of " if taus.get("num_solutions") else ""
    yield from _wrapped(f"what a tau does, on {solutions}{on}")
    headings = ["tau", "", "calls", "wasted", "caught", "reward vs target", "regret", "time"]
    yield from _aligned(headings, [cells for row in shown for cells in _tau_lines(row, names.get(row["tau"], []), times)])
    yield from _wrapped(
        "calls: steps that are escalated; wasted: of those, the ones that gain nothing; caught: of those worth it"
    )
    yield from _wrapped("reward, and regret against the oracle: points per solution; what is lost is lost once")
    if not taus.get("is_certain"):
        count = (taus.get("named_on") or taus).get("num_solutions")
        on = f" on {rounding.count(count, 'solution')}" if count else ""
        yield from _wrapped(f"exact: as far as was seen when it was named{on}, too few to be sure of half a point")
    yield from _wrapped(f"time: of the target alone, at the costs of {costs_of}")


def _tau_lines(row: Row, names: Sequence[str], times: Mapping[float, float | None]) -> Iterator[list[str]]:
    """A line for the tau, with its first name; further names stand below that one: side by side they would be too wide."""
    first, *others = names or [""]
    cells = _tau_cells(row, first, times)
    yield cells
    yield from (["", name, *[""] * len(cells[2:])] for name in others)


def _tau_cells(row: Row, name: str, times: Mapping[float, float | None]) -> list[str]:
    change = f"{rounding.points(row['change'] / 100)} {_points_range(row['change_interval'])}".rstrip()
    rates = [rounding.percent(row[rate], 0) for rate in ("escalation_rate", "wasted", "recall")]
    return [
        f"{row['tau']:.4f}",
        name,
        *rates,
        change,
        f"{row['regret'] + 0.0:.1f}",
        rounding.percent(times.get(row["tau"]), 0),
    ]


def _points_range(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"[{' '.join(rounding.points(end / 100) for end in interval)}]"


def _aligned(headings: Sequence[str], rows: Sequence[Sequence[str]], *, align_left: bool = False) -> Iterator[str]:
    """Names to the left; figures to the right, or to the left as well where an interval follows them."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for cells in (headings, *rows):
        padded = [
            cell.ljust(width) if align_left or index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        yield "  ".join(padded).rstrip()


def _wrapped(text: str) -> Iterator[str]:
    yield from textwrap.wrap(text, WIDTH, subsequent_indent="  ")
