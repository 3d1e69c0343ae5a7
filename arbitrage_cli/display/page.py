"""Renders the report of a run as a self-contained HTML file that is safe to open even if a model wrote hostile text.

The template escapes all text, and a script inserts the traces as plain text. A Content Security Policy blocks the network.
It allows, by hash, only this script and one style sheet.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from arbitrage_cli.display import charts, columns, facts, traces
from arbitrage_cli.display.columns import DEFINITIONS, Column
from arbitrage_cli.display.table import size_of
from arbitrage_cli.display.text import safe
from arbitrage_cli.numbers import formatting

TEMPLATES = Path(__file__).parent / "templates"

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FigureTable:
    """A table with a row for each policy: the policy, its label, and each figure with its interval or counts."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[tuple[str, str, Sequence[tuple[str, str]]]]

    @property
    def has_beside(self) -> list[bool]:
        """Whether each column has intervals or counts."""
        return [any(beside for _, beside in column) for column in zip(*(cells for _, _, cells in self.rows), strict=True)]


def render(run: Json, figures: Json, packed: Json) -> str:
    """Return an HTML report, given the content of run.json, the figures, and the result of `TracePacker.packed`."""
    style = _template_text("report.css")
    script = "\n".join(map(_template_text, ("temml.min.js", "report.js")))  # Temml 0.13.5 from npm: LaTeX to MathML
    template = _environment().get_template("report.html")
    return template.render(
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=traces.embedded(packed),
        **_view(run, figures),
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
        finalize=lambda value: safe(value) if type(value) is str else value,  # Markup is a subclass
    )
    environment.filters |= {"typeset": _typeset, "path": charts.path_of}
    return environment


def _typeset(text: str) -> str:
    text = re.sub(r"(?<=\d)-(?=\d)", "\N{EN DASH}", text)
    text = re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text).replace("->", "\N{RIGHTWARDS ARROW}")
    return "\N{EN DASH}" if text == formatting.UNKNOWN else text


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _view(run: Json, figures: Json) -> dict[str, Any]:
    policies = figures["policies"]
    levels = charts.level_chart(policies)
    tables = [table for table in (_table(*entry, policies) for entry in columns.PAGE.items()) if table.rows]
    shown = {column.definition: column.heading for table in tables for column in table.columns}
    shown |= {"accuracy": "accuracy"} | ({"by_level": "by level"} if levels else {})
    shown |= {"time": "time"} if "time" in shown else {}
    return {
        "title": figures["dataset"],
        "count": size_of(figures),
        "headline": " ".join(facts.headline(figures)),
        "summary": " ".join(facts.summary(figures)),
        "facts": [*facts.main_facts(run)],
        "other_facts": [*facts.other_facts(run)],
        "notes": figures["notes"],
        "names": list(dict.fromkeys(policy["policy"] for policy in policies)),
        "front": charts.accuracy_chart(policies),
        "levels": levels,
        "tables": tables,
        "definitions": [(name, shown[name], text) for name, text in DEFINITIONS.items() if name in shown],
    }


def _table(caption: str, shown: Sequence[Column], policies: Sequence[Json]) -> FigureTable:
    rows = [policy for policy in policies if columns.known(shown, [policy])]
    kept = columns.known(shown, rows)
    return FigureTable(caption, kept, [(row["policy"], row["label"], [column.cell(row) for column in kept]) for row in rows])
