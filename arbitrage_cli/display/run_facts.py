"""Facts about runs and planned runs, for tables and the HTML report."""

import shlex
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from arbitrage_cli.display.text import one_line, role_name
from arbitrage_cli.numbers import formatting
from arbitrage_cli.types import Json

if TYPE_CHECKING:
    from arbitrage_cli.app.commands.preview import Preview
    from arbitrage_cli.runs.rows import AttemptRow
    from arbitrage_cli.runs.run import Run

Fact = tuple[str, str]
"""A name and a text."""

LONG_SETTINGS = ("system", "step_separator", "router_sha256")
"""Settings that are not listed."""


def main_facts(run: "Run") -> Iterable[Fact]:
    yield from facts_of_models(run)
    yield "machine", _listed(run.decided.machine)
    settings = run.decided.settings.of_call()
    yield "settings", _listed({name: value for name, value in settings.items() if name not in LONG_SETTINGS})


def facts_of_models(run: "Run") -> Iterable[Fact]:
    for role, model in run.decided.models.items():
        loaded = run.loaded.get(role)
        named = dict.fromkeys([model.name, *([loaded.description] if loaded and loaded.description else [])])
        threads = [formatting.count(model.threads, "thread")] if model.threads else []
        costs = ["approximate token costs"] if model.costs_are_approximate else []
        yield role_name(role), ", ".join([*named, *_digest(model.sha256), *threads, *costs])
    if router := run.decided.router:
        yield "router", ", ".join([router.name, *_digest(router.sha256)])


def other_facts(run: "Run") -> Iterable[Fact]:
    if run.dataset:
        yield "data set", ", ".join([run.dataset.name, *_digest(run.dataset.sha256)])
    yield from (("grader", run.grader or ""), ("tool", run.tool), ("created", run.created))
    yield "command", " ".join(run.asked.command)
    if run.flags:
        yield "llama.cpp", run.flags


def run_lines(record: Json) -> tuple[str, str]:
    """Return the title and the description of a run from `list_runs`."""
    days = timedelta(seconds=record["age_seconds"]).days
    age = formatting.count(days, "day") if days else formatting.duration(record["age_seconds"])
    done = f"{record['done']}/{record['planned']} done, " if "done" in record else ""
    about = record.get("error") or f"{record['dataset']}: {record['policies']}; {record['models']}"
    return one_line(shlex.quote(record["folder"])), one_line(f"{done}{age} ago; {about}")


def plan_facts(planned: "Preview", title: str, path: Path) -> Iterable[Fact]:
    """Yield facts about a planned benchmark."""
    plan, num_todo = planned.plan, planned.num_todo
    yield "data set", title
    yield "policies", ", ".join(route.label for route in plan.routes)
    for role, source in plan.sources.items():
        yield role_name(role), f"{source} (to download)" if role in plan.missing_roles else source
    done = f": {formatting.count(planned.num_attempts - num_todo, 'attempt')} done" if planned.is_resumed else ""
    yield "folder", f"{path}{done}"
    yield "attempts", f"{num_todo} of {planned.num_attempts} to run"
    unknown = f"unknown for {', '.join(planned.unknown)}; run with --limit 5 first, then repeat --dry-run"
    yield "time", unknown if planned.unknown else f"about {formatting.duration(planned.seconds)}"
    for note in plan.notes:
        yield "note", note


def grade_change(before: "AttemptRow", now: "AttemptRow") -> str:
    values = [row.grade.value for row in (before, now) if row.grade]
    return f"{before.id}, {before.route.label}: was {values[0]}, now {values[1]}: {now.grade and now.grade.explanation}"


def _listed(values: Json) -> str:
    known = {key: value for key, value in values.items() if isinstance(value, str | int | float)}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in known.items())


def _digest(sha256: str | None) -> list[str]:
    return [f"sha256 {sha256[:12]}"] if sha256 else []
