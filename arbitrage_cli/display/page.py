"""A report of one or more runs: one HTML file that needs nothing else, and is safe to open although its texts are hostile.

The template draws charts and tables, in which runs stand side by side; a script of the page turns the traces, which are data,
into text when they are looked at. The page's own policy allows that one script and that one style sheet, by their hashes, and
no network. Texts of models, problems and files are escaped by the template engine, or packed for the script, which only ever
sets them as text. Everything but the traces comes from the JSON of `figures`.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from arbitrage_cli.display import charts, columns, facts, rounding, table, traces
from arbitrage_cli.display.charts import Entry, Series, all_entries, series_of
from arbitrage_cli.display.columns import Column
from arbitrage_cli.display.text import safe
from arbitrage_cli.evaluation.definitions import COMPARED, DEFINITIONS

TEMPLATES = Path(__file__).parent / "templates"

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ReportedRun:
    """A run to report on: run.json, the figures of its rows, and its packed traces."""

    run: Json
    figures: Json
    traces: Json

    @property
    def name(self) -> str:
        return str(self.traces["name"])


@dataclass(frozen=True, slots=True)
class FigureTable:
    """Policies down, figures across. A cell has a figure, and its interval or its counts beside it."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[tuple[Series, str, Sequence[tuple[str, str]]]]

    @property
    def has_beside(self) -> list[bool]:
        """Whether a column has anything beside its figures, which then gets a column of its own."""
        return [any(beside for _, beside in column) for column in zip(*(cells for _, _, cells in self.rows), strict=True)]


def short_names(names: Sequence[str]) -> list[str]:
    """The last part of each folder's name, if that tells them apart."""
    short = [Path(name).name for name in names]
    return short if len(set(short)) == len(names) and all(short) else [f"{n}. {name}" for n, name in enumerate(names, 1)]


def render(reported: Sequence[ReportedRun], comparison: Json | None = None) -> str:
    """The page, as text to be stored in UTF-8. `comparison` is that of two runs."""
    style = _template_text("report.css")
    script = "\n".join(map(_template_text, ("temml.min.js", "report.js")))  # Temml 0.13.5, from npm: LaTeX to MathML
    return (
        _environment()
        .get_template("report.html")
        .render(
            style=style,
            script=script,
            style_hash=_hash(style),
            script_hash=_hash(script),
            definitions=_definitions(),
            data=traces.embedded({"runs": [one.traces for one in reported]}),
            **_view(reported, comparison),
        )
    )


def _template_text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: safe(value) if type(value) is str else value,  # what is marked as safe has another type
    )
    environment.filters |= {"typeset": _typeset, "link": _link}
    return environment


def _typeset(text: str) -> str:
    """A figure with the dash, the minus and the arrow that print has for it."""
    text = re.sub(r"(?<=\d)-(?=\d)", "\N{EN DASH}", text)
    text = re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text).replace("->", "\N{RIGHTWARDS ARROW}")
    return "\N{EN DASH}" if text == rounding.UNKNOWN else text


def _link(problem: str, label: str) -> str:
    """Where the script shows the attempt at a problem by a policy."""
    return f"#{quote(safe(problem), safe='')}/{quote(safe(label), safe='')}"


def _hash(text: str) -> str:
    """The source expression of a Content Security Policy for exactly this text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


# --- what the template draws


def _view(reported: Sequence[ReportedRun], comparison: Json | None) -> dict[str, Any]:
    runs, names = [one.figures for one in reported], [one.name for one in reported]
    entries = all_entries([(name, figures["policies"]) for name, figures in zip(names, runs, strict=True)])
    heads = {entry.run: entry for entry in reversed(entries) if entry.figures["calibration"]}  # the first of its taus
    main, other = facts.facts([(one.name, one.run) for one in reported])
    return {
        "title": ", ".join(dict.fromkeys(figures["dataset"] for figures in runs)),
        "count": ", ".join(dict.fromkeys(map(table.size_of, runs))),
        "runs": names,
        "headlines": _headlines(runs, names, comparison),
        "summaries": _said_by_run(names, [[" ".join(facts.summary(figures))] for figures in runs]),
        "facts": main,
        "other_facts": other,
        "notes": _said_by_run(names, [[*one.figures["notes"], *one.run["warnings"]] for one in reported])
        + list((comparison or {"notes": []})["notes"]),
        "is_throughput": any(figures["concurrency"] > 1 for figures in runs),
        "comparison": comparison and _comparison_table(comparison, names),
        "changed": _changed(comparison),
        "series": list(dict.fromkeys(entry.series for entry in entries)),
        "front": charts.accuracy_chart(entries),
        "levels": charts.level_chart(entries),
        "level_table": _table("Accuracy by level", columns.level_columns([one.figures for one in entries]), entries),
        "calibrations": [charts.calibration_chart(heads[run]) for run in sorted(heads)],
        "tables": _tables(entries),
    }


def _headlines(runs: Sequence[Json], names: Sequence[str], comparison: Json | None) -> list[str]:
    """One sentence a run, and one for the difference of two."""
    change = facts.change(comparison, runs[0]["policies"], names) if comparison else ""
    return [*([change] if change else []), *_said_by_run(names, [[" ".join(facts.headline(figures))] for figures in runs])]


def _said_by_run(names: Sequence[str], texts: Sequence[Sequence[str]]) -> list[str]:
    """What was said of each run, without what is empty; of several runs each with the name of its run."""
    if len(names) == 1:
        return [text for text in texts[0] if text]
    return [f"{name}: {text}" for name, own in zip(names, texts, strict=True) for text in own if text]


def _changed(comparison: Json | None) -> list[tuple[str, str, Sequence[str]]]:
    """What became of problems from the first run to the second: policy, what, and ids."""
    policies = comparison["policies"] if comparison else []
    return [
        (entry["second"], f"{table.pair_label(entry)}, {what}", ids)
        for entry in policies
        for what, ids in table.changes(entry)
    ]


def _tables(entries: Sequence[Entry]) -> list[FigureTable]:
    """All tables of figures, without those in which nothing is known."""
    made = (_table(caption, shown, entries) for caption, shown in columns.PAGE.items())
    return [one for one in made if one.rows and one.columns]


def _table(caption: str, shown: Sequence[Column], entries: Iterable[Entry]) -> FigureTable:
    """The columns, and the policies, of which something is known."""
    rows = [entry for entry in entries if columns.known(shown, [entry.figures])]
    kept = columns.known(shown, [entry.figures for entry in rows])
    cells = [(entry.series, entry.label, [column.cell(entry.figures) for column in kept]) for entry in rows]
    return FigureTable(caption, kept, cells)


def _comparison_table(comparison: Json, names: Sequence[str]) -> FigureTable:
    """The second run against the first."""
    rows = [
        (
            series_of(entry["first"].partition(" ")[0]),
            table.pair_label(entry),
            [one.cell(entry) for one in columns.COMPARISON],
        )
        for entry in comparison["policies"]
    ]
    return FigureTable(f"{names[1]} against {names[0]}", columns.COMPARISON, rows)


def _definitions() -> list[tuple[str, str, str]]:
    """Name, heading and text of each definition."""
    everything = [column for shown in reversed([*columns.PAGE.values()]) for column in shown]
    headings = {column.definition: column.heading for column in everything}
    headings |= {"accuracy": "accuracy", "time": "time"}
    texts = {**DEFINITIONS, **COMPARED}
    return [(name, headings.get(name, name.replace("_", " ")), text) for name, text in texts.items()]
