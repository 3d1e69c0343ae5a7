"""Tables for other programs: Markdown, with the cells of the terminal's table, and CSV, with all single figures in full."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from arbitrage_cli.display.text import one_line


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown: the first column to the left, all others to the right."""
    rule = [":--", *["--:"] * (len(headings) - 1)]
    lines = ([one_line(cell).replace("|", "\\|") for cell in cells] for cells in (headings, rule, *rows))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def comma_separated(records: Sequence[Mapping[str, Any]]) -> str:
    """Records as CSV. A field with two values is two columns; nested records are left out."""
    flat = [dict(_flat(record)) for record in records]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(name for one in flat for name in one)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return stream.getvalue()


def _flat(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, str):
            yield name, one_line(value)
        elif name.endswith("interval"):
            yield from zip((f"{name}_low", f"{name}_high"), value or (None, None), strict=True)
        elif isinstance(value, list | tuple) and len(value) == 2:
            yield from zip((f"{name}_first", f"{name}_second"), value, strict=True)
        elif not isinstance(value, Mapping | list | tuple):
            yield name, value
