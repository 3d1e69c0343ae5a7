"""A report of one or more runs: one HTML file that needs nothing else, and may be opened although its texts are hostile.

Charts and tables are written out; the traces are data that a script of the page turns into text when they are looked at.
The page's own policy allows that one script and that one style sheet, by their hashes, and no network. Texts of models,
problems and files are escaped by the template engine, or by `embedded` for the script, which only ever sets them as text.
Everything but the traces comes from the JSON of `figures`.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from arbitrage_cli.display import charts, report_tables, rounding, safe

TEMPLATES = Path(__file__).parent / "templates"
WIDE, NARROW = (960.0, 440.0), (350.0, 360.0)  # of the accuracy/time chart

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

FRACTIONS: Mapping[float, str] = {
    0.125: "\N{VULGAR FRACTION ONE EIGHTH}",
    0.25: "\N{VULGAR FRACTION ONE QUARTER}",
    0.5: "\N{VULGAR FRACTION ONE HALF}",
}

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """A run to report on: run.json, the rows that count, and the figures made of them. `name` is what the user calls it."""

    name: str
    run: Json
    rows: Sequence[Json]
    figures: Json


def render(sources: Sequence[Source]) -> str:
    """The page, as text to be stored in UTF-8."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: safe(value) if type(value) is str else value,  # what is marked as safe has another type
    )
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return environment.get_template("report.html").render(
        mark_path=charts.mark_path,
        typeset=_typeset,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        runs=[_view(source, f"run-{number}") for number, source in enumerate(sources, start=1)],
        definitions=report_tables.definitions(),
        data=embedded({"runs": [_traces(source) for source in sources]}),
    )


def embedded(data: Any) -> str:
    """JSON for a script element: ASCII, and without any character that could end the element or begin a comment."""
    text = json.dumps(_clean(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _clean(data: Any) -> Any:
    """The data with all texts made `safe`."""
    if isinstance(data, str):
        is_plain = data.replace("\n", "").replace("\t", "").isprintable()  # most are: `safe` looks at every character
        return data if is_plain else safe(data)
    if isinstance(data, Mapping):
        return {_clean(key): _clean(value) for key, value in data.items()}
    return [_clean(value) for value in data] if isinstance(data, list | tuple) else data


def _typeset(text: str) -> str:
    """A figure with the dash, the minus and the times sign that print has for it."""
    text = re.sub(r"(?<=\d)-(?=\d)", "\N{EN DASH}", text)
    text = re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text)
    text = re.sub(r"(?<=\d)x\b", "\N{MULTIPLICATION SIGN}", text)
    return "\N{EN DASH}" if text == rounding.UNKNOWN else text


def _hash(text: str) -> str:
    """The source expression of a Content Security Policy for exactly this text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


# --- one run


def _view(source: Source, key: str) -> dict[str, Any]:
    """What the template draws of a run."""
    figures = source.figures
    series = charts.all_series(figures["policies"])
    at_once = figures["concurrency"] > 1
    main, cost = (
        (report_tables.THROUGHPUT, report_tables.COST_AT_ONCE) if at_once else (report_tables.MAIN, report_tables.COST)
    )
    tables = [
        report_tables.policy_table("Accuracy and time", main, figures, series),
        report_tables.policy_table("Who wrote what", report_tables.ROUTING, figures, series),
        report_tables.policy_table("What it cost", cost, figures, series),
        report_tables.curve_table(figures, series),
    ]
    return {
        "key": key,
        "name": source.name,
        "title": figures["dataset"] or "unnamed data set",
        "count": rounding.count(figures["n"], "problem")
        + (f", {figures['samples']} samples each" if figures["samples"] > 1 else "")
        + (f", {figures['concurrency']} at once" if at_once else ""),
        "summary": _summary(figures),
        "facts": list(_facts(source.run)),
        "notes": [*figures["notes"], *(source.run.get("warnings") or [])],
        "is_throughput": at_once,
        "plots": [plot for size in (WIDE, NARROW) if (plot := charts.plot(figures, *size))],
        "legend": list(series.values()),
        "tables": [table for table in tables if table and table.rows],
        "levels": report_tables.level_table(figures, series),
        "speedups": _speedups(figures, series),
        "time": _time(figures, series),
        "projection": report_tables.projection_table(figures, series),
        "cost_ratio": rounding.number(figures["measured_cost_ratio"]),
    }


def _summary(figures: Json) -> list[str]:
    """What the two models do alone: everything else lies between."""
    return [
        f"The {policy['policy']} alone solves {rounding.percent(policy['accuracy'])} {pace}."
        for policy in figures["policies"]
        if policy["policy"] in ("target", "draft") and (pace := _pace(policy))
    ]


def _pace(policy: Json) -> str:
    """How fast a policy is; empty where it is not known."""
    if policy["problems_per_second"] is not None:
        return f"at {rounding.number(policy['problems_per_second'])} problems a second"
    return "" if policy["seconds_mean"] is None else f"in {rounding.number(policy['seconds_mean'])} s a problem"


def _facts(run: Json) -> Iterable[tuple[str, str]]:
    """What the run was made with, as far as it says."""
    for role in ("draft", "target"):
        model = (run.get("models") or {}).get(role)
        if model:
            yield role, ", ".join(_model_facts(model))
    yield from _listed("sampling", run.get("sampling"))
    yield from _listed("limits", run.get("limits"))
    yield from _listed("context", run.get("context"))
    yield from _listed("machine", run.get("machine"))
    dataset = run.get("dataset") or {}
    if dataset.get("sha256"):
        yield "data set", f"{dataset.get('name')}, sha256 {str(dataset['sha256'])[:12]}"
    yield from ((name, str(run[name])) for name in ("grader", "tool", "created") if run.get(name))
    if run.get("command"):
        yield "command", " ".join(map(str, run["command"]))


def _model_facts(model: Json) -> Iterable[str]:
    """What it is, what it was called by, and which file exactly that was."""
    told = dict.fromkeys(str(model[name]) for name in ("description", "source") if model.get(name))
    yield from told or [str(model.get("name"))]
    if model.get("sha256"):
        yield f"sha256 {str(model['sha256'])[:12]}"


def _listed(name: str, values: Json | None) -> Iterable[tuple[str, str]]:
    """`threads 2, cpu ...`: one fact of several."""
    plain = [
        f"{key.replace('_', ' ')} {value}" for key, value in (values or {}).items() if isinstance(value, str | int | float)
    ]
    if plain:
        yield name, ", ".join(plain)


# --- charts that are drawn in rows


def _speedups(figures: Json, series: Mapping[str, charts.Series]) -> dict[str, Any] | None:
    """Histograms of the speed-ups of single problems, all on one scale. Places are in percent of the width and height."""
    shown = [policy for policy in figures["policies"] if policy["problem_speedups"]]
    if not shown:
        return None
    bins = figures["speedup_bins"]
    width = 100 / (len(bins) - 1)
    rows = []
    for policy in shown:
        spread = policy["problem_speedups"]
        highest = max(spread["counts"])
        bars = [
            {
                "x": round(index * width, 3),
                "width": round(width, 3),
                "height": round(100 * count / highest, 1),
                "is_slower": bins[index] < 1,
                "title": f"{_bin_name(bins, index)}: {rounding.count(count, 'problem')}",
            }
            for index, count in enumerate(spread["counts"])
            if count
        ]
        slower = f"{spread['slower']} of {spread['n']} slower"
        middle = (rounding.times(spread["p50"]), rounding.times_range((spread["p10"], spread["p90"])))
        rows.append(
            {"series": series[policy["policy"]], "label": policy["label"], "bars": bars, "middle": middle, "slower": slower}
        )
    bounds = {0: "\N{LESS-THAN OR EQUAL TO}", len(bins) - 1: "\N{GREATER-THAN OR EQUAL TO}"}
    ticks = [
        (
            round(100 * index / (len(bins) - 1), 3),
            f"{bounds.get(index, '')}{FRACTIONS.get(edge, f'{edge:g}')}\N{MULTIPLICATION SIGN}",
        )
        for index, edge in enumerate(bins)
        if index % 4 == 0
    ]
    return {"rows": rows, "ticks": ticks}


def _bin_name(bins: Sequence[float], index: int) -> str:
    """The speed-ups that a bar counts. The first and the last have everything beyond them too."""
    if index == 0:
        return f"up to {bins[1]:.2f}x"
    if index == len(bins) - 2:
        return f"{bins[index]:.2f}x and more"
    return f"{bins[index]:.2f}x to {bins[index + 1]:.2f}x"


def _time(figures: Json, series: Mapping[str, charts.Series]) -> dict[str, Any] | None:
    """Mean seconds of an attempt by what they went into, all policies on one scale. Places are in percent of the width."""
    timed = [policy for policy in figures["policies"] if policy["seconds_mean"]]
    if not timed:
        return None
    parts = [part for part in TIME_PARTS if any(policy["time"][part] for policy in timed)]
    longest = max(policy["seconds_mean"] for policy in timed)
    rows = []
    for policy in timed:
        attempts = policy["ratios"]["seconds_mean"]["denominator"]
        seconds = {part: policy["time"][part] / attempts for part in parts}
        start, bars = 0.0, []
        for part, value in seconds.items():
            width = max(0.0, 100 * value / longest)
            if width:
                title = (
                    f"{TIME_PARTS[part]}: {rounding.number(value)} s, {rounding.percent(value / policy['seconds_mean'], 0)}"
                )
                bars.append({"part": part, "x": round(start, 3), "width": round(width, 3), "title": title})
            start += width
        cells = [rounding.number(max(0.0, value)) for value in seconds.values()]
        own = series[policy["policy"]]
        rows.append(
            {
                "series": own,
                "label": policy["label"],
                "bars": bars,
                "mean": rounding.number(policy["seconds_mean"]),
                "cells": cells,
            }
        )
    return {"rows": rows, "parts": [(part, TIME_PARTS[part]) for part in parts]}


# --- traces


def _traces(source: Source) -> dict[str, Any]:
    """The rows of a run for the script: problems once, then attempts, each with how it compares with the target alone."""
    labels = [policy["label"] for policy in source.figures["policies"]]
    places = {_column(policy): index for index, policy in enumerate(source.figures["policies"])}
    series = charts.all_series(source.figures["policies"])
    alone = {(row["id"], row.get("sample") or 0): row for row in source.rows if row["policy"] == "target"}
    problems = {
        row["id"]: {"question": row.get("problem"), "gold": row.get("gold"), "level": row.get("level")}
        for row in source.rows
    }
    return {
        "name": source.name,
        "policies": [
            {"label": label, "number": policy.get("number"), "style": series[policy["policy"]].style}
            for label, policy in zip(labels, source.figures["policies"], strict=True)
        ],
        "problems": problems,
        "attempts": [
            _attempt(row, places[_column(row)], alone.get((row["id"], row.get("sample") or 0))) for row in source.rows
        ],
    }


def _column(row: Json) -> tuple[str, float | None]:
    tau = row.get("tau")
    return row["policy"], None if tau is None else float(tau)


def _attempt(row: Json, policy: int, alone: Json | None) -> dict[str, Any]:
    score = row.get("score") or {}
    return {
        "id": row["id"],
        "sample": row.get("sample") or 0,
        "policy": policy,
        "tau": row.get("tau"),
        "verdict": _verdict(row),
        "target": _verdict(alone) if alone and alone is not row else None,
        "answer": score.get("answer") if score.get("answer") is not None else row.get("answer"),
        "explanation": score.get("explanation"),
        "error": row.get("error"),
        "stop": row.get("stop"),
        "seconds": _seconds(row),
        "target_seconds": _seconds(alone) if alone and alone is not row else None,
        "steps": row.get("steps") or [],
    }


def _seconds(row: Json) -> float | None:
    """An attempt's own time; None where others were made beside it."""
    return row.get("wall_seconds") if row.get("status") == "done" and "throughput" not in row else None


def _verdict(row: Json) -> str:
    if row.get("status") != "done":
        return "error"
    return str((row.get("score") or {}).get("value") or "unscored")
