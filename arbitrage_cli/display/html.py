"""A report of one or more runs: one HTML file that needs nothing else, and is safe to open although its texts are hostile.

The template draws charts and tables; a script of the page turns the traces, which are data, into text when they are looked
at. The page's own policy allows that one script and that one style sheet, by their hashes, and no network. Texts of models,
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

from arbitrage_cli.display import charts, report_tables, rounding, table
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


def render(sources: Sequence[Source]) -> str:
    """The page, as text to be stored in UTF-8."""
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return (
        _environment()
        .get_template("report.html")
        .render(
            style=style,
            script=script,
            style_hash=_hash(style),
            script_hash=_hash(script),
            runs=[_view(source, f"run-{number}") for number, source in enumerate(sources, start=1)],
            definitions=report_tables.definitions(),
            data=embedded({"runs": [_traces(source) for source in sources]}),
        )
    )


def embedded(data: Any) -> str:
    """JSON for a script element: ASCII, and without any character that could end the element or begin a comment."""
    text = json.dumps(_clean(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: safe(value) if type(value) is str else value,  # what is marked as safe has another type
    )
    shown = (rounding.number, rounding.percent, rounding.times, rounding.times_range, rounding.count)
    environment.filters |= {"typeset": _typeset, **{show.__name__: show for show in shown}}
    return environment


def _clean(data: Any) -> Any:
    """The data with all texts made `safe`."""
    if isinstance(data, str):
        return safe(data)
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
    timed = [policy for policy in figures["policies"] if policy["seconds_mean"]]
    return {
        "key": key,
        "name": source.name,
        "title": figures["dataset"],
        "count": table.size_of(figures),
        "summary": list(_summary(figures)),
        "facts": list(_facts(source.run)),
        "notes": [*figures["notes"], *source.run["warnings"]],
        "is_throughput": figures["concurrency"] > 1,
        "plot": charts.plot(figures),
        "series": series,
        "tables": report_tables.main_tables(figures, series),
        "levels": report_tables.level_table(figures, series),
        "projection": report_tables.projection_table(figures, series),
        "cost_ratio": rounding.number(figures["measured_cost_ratio"]),
        "compared": [policy for policy in figures["policies"] if policy["problem_speedups"]],
        "bins": figures["speedup_bins"],
        "timed": timed,
        "time_parts": {part: name for part, name in TIME_PARTS.items() if any(policy["time"][part] for policy in timed)},
    }


def _summary(figures: Json) -> Iterable[str]:
    """What the two models do alone: everything else lies between. And how many attempts were cut."""
    for policy in figures["policies"]:
        if policy["policy"] in charts.ALONE and (pace := _pace(policy)):
            yield f"The {policy['policy']} alone solves {rounding.percent(policy['accuracy'])} {pace}."
    cut = sum(policy["cut"] for policy in figures["policies"])
    if cut:
        made = sum(policy["n"] - policy["missing"] for policy in figures["policies"])
        yield f"{cut} of {made} attempts were cut at a limit."


def _pace(policy: Json) -> str:
    """How fast a policy is; empty if unknown."""
    if policy["problems_per_second"] is not None:
        return f"at {rounding.number(policy['problems_per_second'])} problems a second"
    return "" if policy["seconds_mean"] is None else f"in {rounding.number(policy['seconds_mean'])} s a problem"


def _facts(run: Json) -> Iterable[tuple[str, str]]:
    """What the run was made with."""
    for role, model in run["models"].items():
        named = dict.fromkeys(str(model[name]) for name in ("description", "source") if model.get(name))
        yield role, ", ".join([*named, *_digest(model)])
    for name in ("sampling", "limits", "context", "machine"):
        known = {key: value for key, value in run[name].items() if isinstance(value, str | int | float)}
        yield name, ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in known.items())
    for name, part in (("head", run["router"]), ("data set", run["dataset"])):
        if part:
            yield name, ", ".join([part["name"], *_digest(part)])
    yield from ((name, run[name]) for name in ("grader", "tool", "created"))
    yield "command", " ".join(run["command"])


def _digest(part: Json) -> list[str]:
    return [f"sha256 {part['sha256'][:12]}"] if part["sha256"] else []


# --- traces


def _traces(source: Source) -> dict[str, Any]:
    """The rows of a run for the script: problems once, then attempts, each with how it compares with the target alone."""
    policies = source.figures["policies"]
    places = {(policy["policy"], policy["tau"]): index for index, policy in enumerate(policies)}
    alone = {(row["id"], row["sample"]): row for row in source.rows if row["policy"] == "target"}
    return {
        "name": source.name,
        "policies": [{"label": policy["label"], "number": policy["number"]} for policy in policies],
        "problems": {
            row["id"]: {"question": row["problem"], "gold": row["gold"], "level": row["level"]} for row in source.rows
        },
        "attempts": [
            _attempt(row, places[row["policy"], row["tau"]], alone.get((row["id"], row["sample"]))) for row in source.rows
        ],
    }


def _attempt(row: Json, policy: int, alone: Json | None) -> dict[str, Any]:
    score = row["score"] or {"answer": None, "explanation": None}
    target = alone if alone is not row else None
    return {
        **{name: row[name] for name in ("id", "sample", "tau", "error", "stop", "steps")},
        "policy": policy,
        "verdict": _verdict(row),
        "target": _verdict(target) if target else None,
        "answer": row["answer"] if score["answer"] is None else score["answer"],
        "explanation": score["explanation"],
        "seconds": _seconds(row),
        "target_seconds": _seconds(target) if target else None,
    }


def _seconds(row: Json) -> float | None:
    """An attempt's own time; None if others were made beside it."""
    return row["wall_seconds"] if row["status"] == "done" and "throughput" not in row else None


def _verdict(row: Json) -> str:
    return str(row["score"]["value"]) if row["status"] == "done" else "error"
