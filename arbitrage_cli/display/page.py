"""Renders the report of a run as a self-contained HTML file that is safe to open even if a model wrote hostile text.

The template escapes all text, and a script inserts the traces as plain text. A Content Security Policy blocks the network.
It allows, by hash, only this script and one style sheet.

A page contains the traces of all attempts, as JSON of at most 20 MB. If a run has more, the page has those with a wrong answer
first, and a sample of the others.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2

from arbitrage_cli.display import run_facts
from arbitrage_cli.display.columns import Column, columns_of, known, outcomes, size_of
from arbitrage_cli.display.text import safe
from arbitrage_cli.display.verdict import sentence
from arbitrage_cli.evaluation.figures import PolicyFigures, shown_figures
from arbitrage_cli.evaluation.metrics import RunFigures
from arbitrage_cli.problems.answers import boxed_answer, gold_answer
from arbitrage_cli.runs.records import AttemptKey
from arbitrage_cli.runs.rows import AttemptRow
from arbitrage_cli.runs.run import Run
from arbitrage_cli.types import Json, frozen

TEMPLATES = Path(__file__).parent / "templates"
MAX_BYTES = 20_000_000  # of the traces
DIGITS = 4  # decimals of numbers, more than the page shows
SHOWN = frozenset(
    ("id", "sample", "policy", "tau", "level", "problem", "gold", "answer", "grade", "error", "stop", "steps", "check")
)  # the fields of a row that the page shows


def render(run: Run, figures: RunFigures, traces: "Traces") -> str:
    """Return an HTML report, given the content of run.json, the figures, and the traces of the rows."""
    style = _template_text("report.css")
    script = "\n".join(map(_template_text, ("temml.min.js", "report.js")))  # Temml 0.13.5 from npm: LaTeX to MathML
    template = _environment().get_template("report.html")
    return template.render(
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=traces.data(figures.policies),
        sample=traces.sample,
        **_view(run, figures),
    )


def _template_text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: safe(value) if type(value) is str else value,  # Markup is a subclass
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


REMARKS: Column[PolicyFigures] = Column("remarks", "remarks", lambda policy: (outcomes(policy), ""))
DEFINITION_OF_REMARKS = (
    "Attempts that were not scored, failed, were not made, or were cut. A cut solution reached a limit (max-tokens, max-steps, "
    "ctx) before it was complete. It is graded, too."
)


def _view(run: Run, figures: RunFigures) -> Json:
    tables = [table for table in _tables(figures.policies) if table["rows"]]
    headings = {column.name: column.heading for table in tables for column, _ in table["columns"]}
    definitions = {name: shown.definition for name, shown in shown_figures().items()} | {REMARKS.name: DEFINITION_OF_REMARKS}
    return {
        "title": figures.dataset,
        "count": size_of(figures),
        "headline": sentence(figures),
        "facts": [*run_facts.main_facts(run)],
        "other_facts": [*run_facts.other_facts(run)],
        "notes": figures.notes,
        "names": list(dict.fromkeys(policy.route.policy.name for policy in figures.policies)),
        "tables": tables,
        "definitions": [(name, headings[name], text) for name, text in definitions.items() if name in headings],
    }


def _tables(policies: Sequence[PolicyFigures]) -> Iterator[Json]:
    """Yield the tables of the page. The first one also contains the outcomes of attempts."""
    names: dict[str, list[str]] = {}
    for name, shown in shown_figures().items():
        names.setdefault(shown.table, []).append(name)
    for caption, own in names.items():
        remarks = [REMARKS] if "accuracy" in own else []
        yield _table(caption, [*columns_of(own, policies), *remarks], policies)


def _table(caption: str, columns: Sequence[Column[PolicyFigures]], policies: Sequence[PolicyFigures]) -> Json:
    """Return a table of the policies that have a figure: its columns, and whether a column has intervals."""
    made = [policy for policy in policies if known(columns, [policy])]
    kept = [(column, any(column.cell(policy)[1] for policy in made)) for column in known(columns, made)]
    rows = [(policy.route.policy.name, policy.route.label, [column.cell(policy) for column, _ in kept]) for policy in made]
    return {"caption": caption, "columns": kept, "rows": rows}


# --- traces


@frozen
class _Trace:
    """The JSON of a trace. With too many bytes, the traces of the highest rank are left out."""

    rank: tuple[bool, int]
    json: str

    @property
    def is_wrong(self) -> bool:
        return not self.rank[0]


class Traces:
    """The traces of a page, made of rows in any order. If an attempt has several rows, the last row is used."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._is_wrong: dict[AttemptKey, bool] = {}  # of all attempts, in the order of their first rows
        self._held: dict[AttemptKey, _Trace] = {}
        self._num_bytes = 0

    def watch(self, rows: Iterable[AttemptRow]) -> Iterator[AttemptRow]:
        """Yield the rows unchanged, and keep the trace of each row before the next is read."""
        for row in rows:
            yield row
            self._add(row)

    def _add(self, row: AttemptRow) -> None:
        right = gold_answer(row.gold) or ""
        content = row.model_dump_json(by_alias=True, exclude_unset=True, include={*SHOWN})
        shown = json.loads(content, parse_float=lambda number: round(float(number), DIGITS)) | {
            "tau": row.tau,
            "right": boxed_answer(right) or right,
            "verdict": row.grade.value if row.grade and row.status == "done" else "error",
            "seconds": round(row.wall_seconds, DIGITS) if row.status == "done" else None,
        }
        is_wrong = shown["verdict"] in ("incorrect", "error")
        place = zlib.crc32(f"{row.id}/{row.sample}".encode("utf-8", "surrogatepass"))  # the same for all policies
        self._is_wrong[row.key] = is_wrong
        self._hold(row.key, _Trace((not is_wrong, place), _embedded(shown)))
        if self._num_bytes > 2 * self._max_bytes:
            self._shrink()

    def _hold(self, key: AttemptKey, trace: _Trace) -> None:
        if key in self._held:
            self._num_bytes -= len(self._held[key].json)
        self._held[key] = trace
        self._num_bytes += len(trace.json)

    def _shrink(self) -> None:
        """Leave out traces until the others have at most `max_bytes`. One trace always stays."""
        by_rank = sorted(self._held.items(), key=lambda item: item[1].rank)
        self._held, self._num_bytes = {}, 0
        for key, trace in by_rank:
            if self._held and self._num_bytes + len(trace.json) > self._max_bytes:
                break
            self._hold(key, trace)

    def data(self, policies: Sequence[PolicyFigures]) -> str:
        """Return the JSON for the page's script: the policies, and the traces in the order of their first rows."""
        if self._num_bytes > self._max_bytes:
            self._shrink()
        shown = [policy.to_json() for policy in policies]
        described = _embedded([{**one, "name": one["route"]} for one in shown])
        traces = ",".join(self._held[key].json for key in self._is_wrong if key in self._held)
        return f'{{"policies":{described},"traces":[{traces}]}}'

    @property
    def sample(self) -> str | None:
        """A line about the traces that are left out, or None if the page has all of them."""
        count, wrong = len(self._is_wrong), sum(self._is_wrong.values())
        if len(self._held) == count:
            return None
        shown = sum(trace.is_wrong for trace in self._held.values())
        which = f"all {wrong:,}" if shown == wrong else f"{shown:,} of {wrong:,}"
        others = " and a sample of the others" if shown == wrong else ""
        return f"This page has {len(self._held):,} of {count:,} traces: {which} with a wrong answer or an error{others}."


def _embedded(data: Any) -> str:
    """Return ASCII JSON that cannot end a script element or begin a comment."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
