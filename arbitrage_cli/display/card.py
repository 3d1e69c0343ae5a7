"""Writes the card of a router to the terminal: its training, its quality, and the effect of each tau."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TextIO

from rich.console import RenderableType
from rich.table import Table

from arbitrage_cli.display.printing import pairs, paragraph, print_to, table_of
from arbitrage_cli.errors import RouterError
from arbitrage_cli.numbers import formatting
from arbitrage_cli.routing.presets import TauRow, TauTable
from arbitrage_cli.types import Json

DIGEST = 12  # characters of a checksum
SHOWN_TAUS = 10  # taus in the table, in addition to presets

POLICY_OF = {"lowest logprob": "logprob-min", "mean logprob": "logprob"}  # of baselines with names of their own
MEASURES = {"auc": "AUC", "ece": "calibration error"}
LEGEND = (
    ("calls", "share of the steps that are escalated"),
    ("wasted", "share of calls that gain nothing"),
    ("caught", "share of the steps worth escalating that are escalated"),
)


def write_card(card: Json, stream: TextIO, *, sha256: str) -> None:
    """Write the card. Raises RouterError if the card is incomplete, and any error that `write` raises."""
    try:
        measures = _measures(card["metrics"]["test"])
        parts = [
            paragraph(card["name"]),
            pairs(_about(card, sha256)),
            "",
            *measures,
            "",
            *_taus(card),
            *_verdict(card),
        ]
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:  # cards come from files
        hint = "train the router again with arbitrage train, or use --json to show the card as it is"
        raise RouterError(f"router {card['name']}: incomplete card ({error})", hint) from error
    print_to(stream, *parts)


def _about(card: Json, sha256: str) -> Iterator[tuple[str, str]]:
    data = card["data"]
    architecture = card["metrics"]["architecture"]
    table = TauTable.from_json(card["taus"]).with_early_stops()
    units = architecture["recipe"]["units"]
    form = f"average of {architecture['members']} networks with {units} units each" if units else "logistic regression"
    yield "router", form
    yield "sha256", sha256
    yield "created", f"{card['created']}, with arbitrage {card['version']}"
    for role, model in ((role, pair[role]) for pair in card["pairs"] for role in ("draft", "target")):
        sha256 = model.get("sha256")
        yield role, f"{model['name']}, sha256 {str(sha256)[:DIGEST]}" if sha256 else str(model["name"])
    answers = " (the target's answers count as correct)" if card["reward"].get("answers") == "target" else ""
    yield "reward", f"{card['reward'].get('kind')}{answers}"
    for run in data["runs"]:
        yield "data", f"{run['dataset']}: {_size(run)}"
    for name, part in data["parts"].items():
        yield name, f"{_size(part)}, {formatting.percent(part['improvable'] / part['states'])} worth escalating"
    accepted = formatting.whole_percent(1 - table.row_at(table.named["careful"]).escalation_rate)
    possible = formatting.whole_percent(table.rows[0].wasted)  # if every step is escalated, these calls gain nothing
    yield "careful", f"accepts {accepted} of the steps; a perfect router would accept {possible} at no loss"


def _size(part: Json) -> str:
    return f"{formatting.count(part['problems'], 'problem')}, {formatting.count(part['states'], 'state')}"


def _verdict(card: Json) -> list[str]:
    baselines: dict[str, list[str]] = {}
    for baseline, (_, low, high) in card["metrics"].get("leads", {}).items():
        better = low is not None and low > 0
        worse = high is not None and high < 0
        how = "no better than"
        if better:
            how = "better than"
        elif worse:
            how = "worse than"
        baselines.setdefault(how, []).append(baseline)
    if not baselines:
        return []
    *_, tested = card["data"]["parts"].values()
    problems = formatting.count(tested["problems"], "problem")
    found = "; ".join(f"{how} {', '.join(names)}" for how, names in baselines.items())
    if level := baselines.get("worse than", []) + baselines.get("no better than", []):
        found += (
            f". Policy {POLICY_OF.get(level[0], level[0])} needs no router: use it instead, unless a benchmark shows a gain"
        )
    return [f"on {problems} not used in training, the router ranks steps {found}"]


def _measures(test: Mapping[str, Json]) -> list[RenderableType]:
    rows = [[policy, *(_figure(figures.get(name)) for name in MEASURES)] for policy, figures in test.items()]
    headings = ["", *MEASURES.values()]
    return [paragraph("on the test problems [95% interval over problems]"), table_of(headings, rows, [True] * len(headings))]


def _figure(figure: Sequence[float | None] | None) -> str:
    """Format a figure and its interval, such as `0.941 [0.931 0.950]`."""
    known = [f"{value:.3f}" for value in figure or () if value is not None]
    return f"{known[0]} [{' '.join(known[1:])}]" if len(known) == 3 else (known or [formatting.NO_FIGURE])[0]


def _taus(card: Json) -> Iterator[RenderableType]:
    table = TauTable.from_json(card["taus"]).with_early_stops()
    data = card["data"]
    calibrated = data.get("taus_of")
    source = ", ".join(run["name"] for run in calibrated["runs"]) if calibrated else "held-out problems"
    yield paragraph(f"effect of tau, estimated from {formatting.count(table.num_solutions, 'solution')} of {source}")
    yield _tau_table(table)
    if shortage := table.shortage:
        yield paragraph(shortage)
    time = "relative to the target alone, with the card's token costs" if table.costs else "unknown for your models"
    yield pairs((*LEGEND, ("reward", "points per solution [95% interval over problems]"), ("time", time)))


def _tau_table(table: TauTable) -> Table:
    """Make a table of the presets and of evenly spread taus."""
    names: dict[float, list[str]] = {}
    for name, tau in table.named.items():
        names.setdefault(tau, []).append(name)
    rows = [table.followed_row(row.tau) for row in table.rows]
    evenly = {rows[round(index * (len(rows) - 1) / (SHOWN_TAUS - 1))].tau for index in range(SHOWN_TAUS)}
    shown = [row for row in rows if row.tau in evenly or row.tau in names]
    headings = ["tau", "", "calls", "wasted", "caught", "reward vs target", "time"]
    return table_of(headings, [_tau_cells(row, table.time(row), names.get(row.tau, [])) for row in shown])


def _tau_cells(row: TauRow, time: float | None, names: Sequence[str]) -> list[str]:
    interval = " ".join(formatting.points(end / 100) for end in row.change_interval)
    return [
        *(formatting.tau(row.tau), "\n".join(names)),
        *map(formatting.whole_percent, (row.escalation_rate, row.wasted, row.recall)),
        f"{formatting.points(row.change / 100)} [{interval}]",
        formatting.whole_percent(time),
    ]
