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

import jinja2

from arbitrage_cli.display import bars, plots, report_facts, report_tables, report_traces, rounding, table
from arbitrage_cli.display.charts import Entry, all_entries
from arbitrage_cli.display.text import safe

TEMPLATES = Path(__file__).parent / "templates"

TIME_PARTS: Mapping[str, str] = {
    "draft_decode": "draft decodes",
    "draft_prefill": "draft reads",
    "draft_verify": "draft verifies",
    "target_decode": "target decodes",
    "target_prefill": "target reads",
    "target_verify": "target verifies",
    "router": "router",
    "reward": "reward",
    "rest": "rest",
}

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """A run to report on: run.json, the rows that count, and the figures made of them. `name` is what the user calls it."""

    name: str
    run: Json
    rows: Sequence[Json]
    figures: Json


def render(sources: Sequence[Source], comparison: Json | None = None) -> str:
    """The page, as text to be stored in UTF-8. `comparison` is that of two runs."""
    style = _template_text("report.css")
    script = "\n".join(map(_template_text, ("temml.min.js", "report.js")))  # Temml 0.13.5, from npm: LaTeX to MathML
    names = _short_names([source.name for source in sources])
    traces = [
        report_traces.packed_run(name, source.rows, source.figures["policies"])
        for name, source in zip(names, sources, strict=True)
    ]
    return (
        _environment()
        .get_template("report.html")
        .render(
            style=style,
            script=script,
            style_hash=_hash(style),
            script_hash=_hash(script),
            definitions=report_tables.definitions(),
            data=report_traces.embedded({"runs": traces}),
            **_view(sources, names, comparison),
        )
    )


def _template_text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _short_names(names: Sequence[str]) -> list[str]:
    """The last part of each folder's name, if that tells them apart."""
    short = [Path(name).name for name in names]
    return short if len(set(short)) == len(names) and all(short) else [f"{n}. {name}" for n, name in enumerate(names, 1)]


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: safe(value) if type(value) is str else value,  # what is marked as safe has another type
    )
    shown = (rounding.number, rounding.percent)
    environment.filters |= {"typeset": _typeset, **{show.__name__: show for show in shown}}
    return environment


def _typeset(text: str) -> str:
    """A figure with the dash, the minus and the times sign that print has for it."""
    text = re.sub(r"(?<=\d)-(?=\d)", "\N{EN DASH}", text)
    text = re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text)
    text = re.sub(r"(?<=\d)x\b", "\N{MULTIPLICATION SIGN}", text)
    return "\N{EN DASH}" if text == rounding.UNKNOWN else text


def _hash(text: str) -> str:
    """The source expression of a Content Security Policy for exactly this text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


# --- what the template draws


def _view(sources: Sequence[Source], names: Sequence[str], comparison: Json | None) -> dict[str, Any]:
    runs = [source.figures for source in sources]
    entries = all_entries([(name, figures["policies"]) for name, figures in zip(names, runs, strict=True)])
    main, other = report_facts.facts([(name, source.run) for name, source in zip(names, sources, strict=True)])
    return {
        "title": ", ".join(dict.fromkeys(figures["dataset"] for figures in runs)),
        "count": ", ".join(dict.fromkeys(map(table.size_of, runs))),
        "runs": names,
        "headlines": list(_headlines(runs, names, comparison)),
        "summaries": _said_by_run(names, [[" ".join(report_facts.summary(figures))] for figures in runs]),
        "facts": main,
        "other_facts": other,
        "notes": _said_by_run(names, [[*source.figures["notes"], *source.run["warnings"]] for source in sources])
        + list((comparison or {"notes": []})["notes"]),
        "is_throughput": any(figures["concurrency"] > 1 for figures in runs),
        "comparison": comparison and report_tables.comparison_table(comparison, names),
        "level_table": report_tables.level_table(entries),
        "tables": report_tables.main_tables(runs, names, entries),
        "projection": report_tables.projection_table(entries),
        "cost_ratios": [figures["measured_cost_ratio"] for figures in runs],
        **_charts(entries, runs[0]["speedup_bins"]),
    }


def _charts(entries: Sequence[Entry], bins: Sequence[float]) -> dict[str, Any]:
    timed = [entry for entry in entries if entry.figures["seconds_mean"]]
    heads = {entry.run: entry for entry in reversed(entries) if entry.figures["calibration"]}  # the first of its taus
    return {
        "plot": plots.accuracy_plot(entries),
        "series": list(dict.fromkeys(entry.series for entry in entries)),
        "speedups": bars.speedup_chart(entries, bins),
        "levels": bars.level_chart(entries),
        "positions": bars.position_chart(entries),
        "probabilities": bars.probability_chart(entries),
        "calibrations": [plots.calibration_plot(heads[run]) for run in sorted(heads)],
        "timed": timed,
        "time_parts": {
            part: name for part, name in TIME_PARTS.items() if any(entry.figures["time"][part] for entry in timed)
        },
    }


def _headlines(runs: Sequence[Json], names: Sequence[str], comparison: Json | None) -> Iterable[str]:
    """One sentence a run, and one for the difference of two."""
    if comparison and (change := report_facts.change(comparison, runs[0]["policies"], names)):
        yield change
    yield from _said_by_run(names, [[" ".join(report_facts.headline(figures))] for figures in runs])


def _said_by_run(names: Sequence[str], texts: Sequence[Sequence[str]]) -> list[str]:
    """What was said of each run, without what is empty; of several runs each with the name of its run."""
    if len(names) == 1:
        return [text for text in texts[0] if text]
    return [f"{name}: {text}" for name, own in zip(names, texts, strict=True) for text in own if text]
