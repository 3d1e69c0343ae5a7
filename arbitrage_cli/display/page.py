"""Renders the report of a run as a self-contained HTML file that is safe to open even if a model wrote hostile text.

The template escapes all text, and a script inserts the traces as plain text. A Content Security Policy blocks the network.
It allows, by hash, only this script and one style sheet.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from arbitrage_cli.display import columns, facts, traces
from arbitrage_cli.display.columns import DEFINITIONS, Column
from arbitrage_cli.display.table import size_of
from arbitrage_cli.display.text import safe
from arbitrage_cli.display.verdict import sentence
from arbitrage_cli.numbers import formatting

TEMPLATES = Path(__file__).parent / "templates"

Json = Mapping[str, Any]


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
    environment.filters["typeset"] = _typeset
    return environment


def _typeset(text: str) -> str:
    text = re.sub(r"(?<=\d)-(?=\d)", "\N{EN DASH}", text)
    text = re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text).replace("->", "\N{RIGHTWARDS ARROW}")
    return "\N{EN DASH}" if text == formatting.UNKNOWN else text


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _view(run: Json, figures: Json) -> dict[str, Any]:
    policies = figures["policies"]
    tables = [table for table in (_table(*entry, policies) for entry in columns.PAGE.items()) if table["rows"]]
    has_levels = any(policy["by_level"] and policy["accuracy"] is not None for policy in policies)
    shown = {column.definition: column.heading for table in tables for column, _ in table["columns"]}
    shown |= (
        {"accuracy": "accuracy"}
        | ({"by_level": "by level"} if has_levels else {})
        | ({"time": "time"} if "time" in shown else {})
    )
    return {
        "title": figures["dataset"],
        "count": size_of(figures),
        "headline": sentence(figures["verdict"]) if figures["verdict"] else "",
        "facts": [*facts.main_facts(run)],
        "other_facts": [*facts.other_facts(run)],
        "notes": figures["notes"],
        "names": list(dict.fromkeys(policy["policy"] for policy in policies)),
        "has_levels": has_levels,
        "tables": tables,
        "definitions": [(name, shown[name], text) for name, text in DEFINITIONS.items() if name in shown],
    }


def _table(caption: str, shown: Sequence[Column], policies: Sequence[Json]) -> dict[str, Any]:
    """Return a table of the policies that have a figure: its columns, and whether a column has intervals or counts."""
    made = [policy for policy in policies if columns.known(shown, [policy])]
    kept = [(column, any(column.beside(policy) for policy in made)) for column in columns.known(shown, made)]
    rows = [(policy["policy"], policy["label"], [column.cell(policy) for column, _ in kept]) for policy in made]
    return {"caption": caption, "columns": kept, "rows": rows}
