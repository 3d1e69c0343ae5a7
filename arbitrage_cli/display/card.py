"""The card of a head for a terminal: what the head is, how good it is, and what each tau would do. At most 80 columns.

Made from the card's JSON and nothing else; a card comes from a file, so its texts are data.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from arbitrage_cli.display import rounding
from arbitrage_cli.display.text import aligned, one_line, wrapped, write

FIXED = ("always", "never")  # they have no order: nothing to show at a rate
SHOWN_RATES = (20, 30, 40, 60)  # of those that are on the card
SHOWN_TAUS = 9  # beside those with a name

Card = Mapping[str, Any]
Times = Mapping[float, float | None]
"""The expected time of each tau of a table, as a share of the target's alone."""


def write_card(card: Card, times: Times, stream: TextIO) -> None:
    """Write the card. ReaderGoneError, OutputError as `write`."""
    write(stream, "".join(f"{line}\n" for line in _lines(card, times)))


def write_taus(taus: Card, times: Times, stream: TextIO, *, on: str, costs_of: str) -> None:
    """Write only the table of taus: `on` names the states they were tried on, `costs_of` whose costs the times use."""
    write(stream, "".join(f"{line}\n" for line in _taus(taus, times, one_line(on), costs_of)))


def _lines(card: Card, times: Times) -> Iterator[str]:
    test = card["metrics"]["test"]
    yield from _about(card)
    yield ""
    yield "on the test problems [95% over problems]"
    yield from _measures(
        "", test, {"auc": ("AUC", 1, 3), "spearman": ("Spearman", 1, 2), "ece": ("calibration error", 1, 3)}
    )
    yield ""
    classes = {"accept_accuracy": ("accept class %", 100, 0), "escalate_accuracy": ("escalate class %", 100, 0)}
    yield from _measures("right on", test, classes)
    yield ""
    yield "of the steps worth escalating, % caught when so many % are escalated"
    yield from _at_rates(test, "recall")
    yield ""
    yield "of the oracle's gain over random, % kept when so many % are escalated"
    yield from _at_rates(test, "oracle_share")
    yield ""
    yield from _taus(card["taus"], times, "the same problems", "the machine that collected")
    yield ""
    yield from wrapped(_verdict(card["metrics"]["leads"], card["data"]["parts"]["test"]["problems"]))


def _about(card: Card) -> Iterator[str]:
    metrics = card["metrics"]
    made = metrics["architecture"]
    units = made["recipe"]["units"]
    form = f"{made['members']} networks of {units} units, averaged" if units else "logistic regression"
    yield from wrapped(f"{one_line(card['name'])}: {form}; inputs: {made['inputs']}; calibration: {metrics['calibration']}")
    for pair in card["pairs"]:
        draft, target = (one_line(str(pair[role]["name"])) for role in ("draft", "target"))
        yield from wrapped(f"draft {draft}, target {target}; reward: {_reward(card['reward'])}")
    for name, part in card["data"]["parts"].items():
        share = rounding.percent(part["improvable"] / part["states"])
        counts = f"{rounding.count(part['problems'], 'problem')}, {rounding.count(part['states'], 'state')}"
        yield f"{name}: {counts}, {share} worth escalating"


def _reward(reward: Mapping[str, Any]) -> str:
    """Its kind, and if no answers were known that the target's own were right."""
    answers = " (to the target's own answers)" if reward.get("answers") == "target" else ""
    return f"{one_line(str(reward.get('kind')))}{answers}"


def _verdict(leads: Mapping[str, Sequence[float | None]], problems: int) -> str:
    """Whether the head is better than each baseline, level with it or worse, by the interval of the difference."""
    said: dict[str, list[str]] = {}
    for baseline, (_, low, high) in leads.items():
        better, worse = low is not None and low > 0, high is not None and high < 0
        said.setdefault("better than" if better else "worse than" if worse else "level with", []).append(baseline)
    found = "; ".join(f"{how} {', '.join(names)}" for how, names in said.items())
    return f"verdict, on {rounding.count(problems, 'problem')} it never saw: the head ranks steps {found}"


def _at_rates(test: Mapping[str, Card], measure: str) -> Iterator[str]:
    ordered = {number: figures for number, figures in test.items() if number not in FIXED}
    yield from _measures("", ordered, {f"{measure}_{rate}": (f"at {rate}%", 100, 0) for rate in SHOWN_RATES})


def _measures(corner: str, test: Mapping[str, Card], shown: Mapping[str, tuple[str, int, int]]) -> Iterator[str]:
    """A row for each number that was measured. `shown` has each measure's heading, factor and digits."""
    rows = [
        [one_line(number), *(_figure(figures.get(name), factor, digits) for name, (_, factor, digits) in shown.items())]
        for number, figures in test.items()
    ]
    yield from aligned([corner, *(heading for heading, _, _ in shown.values())], rows, left=range(1 + len(shown)))


def _figure(figure: Sequence[float | None] | None, factor: int, digits: int) -> str:
    """`0.941 [0.93 0.95]`: the interval without a dash in between, since figures may be negative."""
    value, low, high = figure or (None, None, None)
    if value is None:
        return rounding.UNKNOWN
    shown = _rounded(factor * value, digits)
    if low is None or high is None:
        return shown
    return f"{shown} [{' '.join(_rounded(factor * end, min(digits, 2)) for end in (low, high))}]"


def _rounded(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # no negative zero


def _taus(taus: Card, times: Times, on: str, costs_of: str) -> Iterator[str]:
    names: dict[float, list[str]] = {}
    for name, tau in taus["named"].items():
        names.setdefault(tau, []).append(name)
    rows = taus["rows"]
    evenly = {rows[round(index * (len(rows) - 1) / (SHOWN_TAUS - 1))]["tau"] for index in range(SHOWN_TAUS)}
    shown = [row for row in rows if row["tau"] in evenly or row["tau"] in names]
    solutions = f"{rounding.count(taus['num_solutions'], 'solution')} of " if taus.get("num_solutions") else ""
    yield from wrapped(f"what a tau does, on {solutions}{on}")
    headings = ["tau", "", "calls", "wasted", "caught", "reward vs target", "regret", "time"]
    yield from aligned(headings, [cells for row in shown for cells in _tau_lines(row, names.get(row["tau"], []), times)])
    yield from wrapped("calls: steps that are escalated; wasted: calls that gain nothing; caught: of the steps worth a call")
    yield from wrapped("reward, and regret against the oracle: points per solution; what is lost is lost once")
    if not taus.get("is_certain"):
        count = (taus.get("named_on") or taus).get("num_solutions")
        on = f" on {rounding.count(count, 'solution')}" if count else ""
        yield from wrapped(f"exact: as measured when it was named{on}, too few to be sure of half a point")
    yield from wrapped(f"time: of the target alone, at the costs of {costs_of}")


def _tau_lines(row: Card, names: Sequence[str], times: Times) -> Iterator[list[str]]:
    """A line for the tau, with its first name; further names stand below that one: side by side they would be too wide."""
    first, *others = names or [""]
    interval = " ".join(rounding.points(end / 100) for end in row["change_interval"] or ())
    cells = [
        *(rounding.percent(row[rate], 0) for rate in ("escalation_rate", "wasted", "recall")),
        f"{rounding.points(row['change'] / 100)} [{interval}]" if interval else rounding.points(row["change"] / 100),
        f"{row['regret'] + 0.0:.1f}",
        rounding.percent(times.get(row["tau"]), 0),
    ]
    yield [f"{row['tau']:.4f}", first, *cells]
    yield from (["", name, *[""] * len(cells)] for name in others)
