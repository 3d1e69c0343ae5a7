"""Renders the report of a run as a self-contained HTML file that is safe to open even if a model wrote hostile text.

The template escapes all text, and a script inserts the traces as plain text. A Content Security Policy blocks the network.
It allows, by hash, only this script and one style sheet.

A page can contain 100,000 traces, which are packed row by row. It contains an index for searching and sorting, and compressed
blocks of rows, which the script unpacks on demand.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
from pydantic_core import to_json

from arbitrage_cli.display import run_facts
from arbitrage_cli.display.columns import Column, columns_of, known, outcomes, size_of
from arbitrage_cli.display.text import safe
from arbitrage_cli.display.verdict import sentence
from arbitrage_cli.evaluation.figures import PolicyFigures, shown_figures
from arbitrage_cli.evaluation.metrics import RunFigures
from arbitrage_cli.problems.answers import boxed_answer, gold_answer
from arbitrage_cli.runs.rows import AttemptRow
from arbitrage_cli.runs.run import Run
from arbitrage_cli.types import Json

TEMPLATES = Path(__file__).parent / "templates"
BLOCK = 1 << 18  # minimum bytes of JSON in a block
DIGITS = 4  # decimals of numbers, more than the page shows
SHOWN = frozenset(
    ("problem", "gold", "answer", "grade", "error", "stop", "steps", "check")
)  # the fields of a row that the page shows


def render(run: Run, figures: RunFigures, packed: Json) -> str:
    """Return an HTML report, given the content of run.json, the figures, and the result of `TracePacker.packed`."""
    style = _template_text("report.css")
    script = "\n".join(map(_template_text, ("temml.min.js", "report.js")))  # Temml 0.13.5 from npm: LaTeX to MathML
    template = _environment().get_template("report.html")
    return template.render(
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=_embedded(packed),
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


class TracePacker:
    """Packs the rows of a run, which may be in any order. If an attempt has several rows, the last row is used.

    If `hides_thoughts` is true, the texts of the thinking phase are left out.
    """

    def __init__(self, *, hides_thoughts: bool = False) -> None:
        self._hides_thoughts = hides_thoughts
        self._problems: dict[str, tuple[int, Any]] = {}  # index and level by ID
        self._attempts: dict[tuple[int, int, Any], list[Any]] = {}
        self._blocks: list[tuple[int, str]] = []
        self._parts: list[bytes] = []
        self._num_rows = 0

    def watch(self, rows: Iterable[AttemptRow]) -> Iterator[AttemptRow]:
        """Yield the rows unchanged, and pack each row before the next is read."""
        for row in rows:
            yield row
            self._add(row)

    def _add(self, row: AttemptRow) -> None:
        problem, _ = self._problems.setdefault(row.id, (len(self._problems), row.level))
        self._attempts[problem, row.sample, (row.policy, row.tau)] = _entry(row, self._num_rows)
        right = gold_answer(row.gold) or ""
        content = row.model_dump_json(by_alias=True, exclude_unset=True, include={*SHOWN})
        shown = json.loads(content, parse_float=lambda number: round(float(number), DIGITS)) | {
            "right": boxed_answer(right) or right
        }
        if self._hides_thoughts:
            _remove_thoughts(shown)
        self._parts.append(to_json(shown))
        self._num_rows += 1
        if sum(map(len, self._parts)) >= BLOCK:
            self._close_block()

    def packed(self, policies: Sequence[PolicyFigures]) -> Json:
        """Return the data for the page's script. A block has the index of its first attempt, and the packed attempts."""
        if self._parts:
            self._close_block()
        shown = [policy.to_json() for policy in policies]
        numbers = {(policy["policy"], policy["tau"]): number for number, policy in enumerate(shown)}
        attempts = [[problem, sample, numbers[of], *entry] for (problem, sample, of), entry in self._attempts.items()]
        problems = [[name, level] for name, (_, level) in self._problems.items()]
        return {
            "policies": [{**one, "name": one["route"]} for one in shown],
            "index": _packed(to_json({"problems": problems, "attempts": attempts})),
            "blocks": self._blocks,
        }

    def _close_block(self) -> None:
        self._blocks.append((self._num_rows - len(self._parts), _packed(b"[" + b",".join(self._parts) + b"]")))
        self._parts = []


def _remove_thoughts(row: Json) -> None:
    check = row.get("check") or {}
    kept = [*row["steps"], *(step for solution in check.get("solutions", ()) for step in solution["steps"])]
    for step in [*kept, *(step["discarded"] for step in kept if step.get("discarded"))]:
        if step["phase"] == "think":
            step["text"] = ""
            for difference in step.get("differences", ()):
                del difference["text"], difference["target_text"]


def _embedded(data: Any) -> str:
    """Return ASCII JSON that cannot end a script element or begin a comment."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 6)).decode()


def _entry(row: AttemptRow, number: int) -> list[Any]:
    """Return an index entry: verdict, wall-clock seconds, seconds for steps, number of target steps, and attempt index."""
    is_done = row.status == "done"
    written = sum(version.seconds for step in row.steps for version in (step, step.discarded) if version)
    written += sum(step.seconds for step in row.check.check.discarded) if row.check else 0.0
    written += sum(cost.seconds for cost in row.rollouts)
    calls = sum(step.model == "target" for step in row.steps)
    seconds = round(row.wall_seconds, DIGITS) if is_done else None
    return [row.grade.value if row.grade and is_done else "error", seconds, round(written, DIGITS), calls, number]
