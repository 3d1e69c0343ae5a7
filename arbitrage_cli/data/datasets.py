"""Loads a data set by name: published on the Hub, shipped with the program, or a file: JSONL, CSV, lines of text, or parquet.

Knows where rows come from and how files hold them, not what is in a row: the fields of all published sets have names that
`rows` looks for.
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from arbitrage_cli.data.problems import read_json_rows
from arbitrage_cli.data.rows import Dataset, Form, make_dataset
from arbitrage_cli.errors import UsageError
from arbitrage_cli.model_files import hub
from arbitrage_cli.model_files.names import HubName
from arbitrage_cli.model_files.pairs import models_folder

BATCH_ROWS = 256
_PARQUET_MAGIC = b"PAR1"
Rows = Iterator[tuple[int, Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Published:
    """A data set on the Hub: its repository, the file in it, and a note on what it holds."""

    repo: str
    file: str
    note: str


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "math500": Published("HuggingFaceH4/MATH-500", "test.jsonl", "500 problems of MATH, levels 1 to 5"),
        "gsm8k": Published("openai/gsm8k", "main/test-00000-of-00001.parquet", "1,319 grade-school word problems"),
        "olympiadbench": Published(
            "Hothan/OlympiadBench",
            "OlympiadBench/OE_TO_maths_en_COMP/OE_TO_maths_en_COMP.parquet",
            "674 olympiad problems in English, text only, with answers that can be compared",
        ),
        "aime24": Published("HuggingFaceH4/aime_2024", "data/train-00000-of-00001.parquet", "the 30 problems of AIME 2024"),
        "aime25": Published("math-ai/aime25", "test.jsonl", "the 30 problems of AIME 2025"),
        "amc23": Published("math-ai/amc23", "test-00000-of-00001.parquet", "40 problems of AMC 12, 2023"),
        "humaneval": Published(
            "openai/openai_humaneval",
            "openai_humaneval/test-00000-of-00001.parquet",
            "164 Python functions to complete, with tests",
        ),
        "mbpp": Published(
            "google-research-datasets/mbpp",
            "sanitized/test-00000-of-00001.parquet",
            "257 short Python programs, verified by hand, with tests",
        ),
        "arc": Published(
            "allenai/ai2_arc",
            "ARC-Challenge/test-00000-of-00001.parquet",
            "1,172 multiple-choice questions of grade-school science",
        ),
    }
)

SHIPPED: Mapping[str, str] = MappingProxyType(
    {
        "builtin": "problems for the built-in models; no network needed",
        "builtin-dev": "the same kind of problems, for trying out and choosing a tau",
    }
)


def known_datasets() -> Mapping[str, str]:
    """The names of all data sets, each with a line on what it holds."""
    return {**SHIPPED, **{name: f"{published.note} ({published.repo})" for name, published in PUBLISHED.items()}}


def load_dataset(
    name_or_path: str,
    *,
    offline: bool,
    mapping: Mapping[str, str] = MappingProxyType({}),
    on_progress: hub.OnProgress = hub.no_progress,
    needs_answers: bool = True,
    forms: Sequence[Form] = (),
) -> Dataset:
    """The data set of that name, fetched from the Hub unless it is cached; else the file of that path: JSONL, parquet, CSV with a header, or lines of text.

    `mapping` names the fields of a file, and `needs_answers` is for one; these and `forms` are as for `make_dataset`. Errors: UsageError,
    HubError, ModelFileError.
    """
    if mapping and name_or_path in known_datasets():
        raise UsageError(f"--map is for files, and {name_or_path} is a data set by name", "leave out --map")
    if name_or_path in PUBLISHED:
        return _load_published(name_or_path, forms, offline=offline, on_progress=on_progress)
    if name_or_path in SHIPPED:
        path = models_folder() / f"{name_or_path}.jsonl"
        if not path.is_file():
            raise UsageError(f"{name_or_path} is not part of this installation ({path})", "install the program again")
        return _read(path, name_or_path)
    path = _existing(name_or_path)
    return _read(path, Path(name_or_path).name, mapping=mapping, needs_answers=needs_answers, forms=forms)


def _load_published(name: str, forms: Sequence[Form], *, offline: bool, on_progress: hub.OnProgress) -> Dataset:
    published = PUBLISHED[name]
    if published.file.endswith(".parquet"):
        _load_pyarrow(name)  # before anything is downloaded
    wanted = HubName(published.repo, published.file, kind="dataset")
    (path,) = hub.find(wanted, offline=offline, on_progress=on_progress)
    return _read(path, name, revision=hub.commit_of(wanted, path), forms=forms)


def _existing(name: str) -> Path:
    """The user's file. UsageError unless it is a regular file."""
    with suppress(OSError, RuntimeError, ValueError):  # too long for a name, ~ of an unknown user, a NUL
        path = Path(name).expanduser()
        if path.is_file():
            return path
    hint = f"data sets: {', '.join(known_datasets())}; or the path of a JSONL, CSV, text or parquet file"
    raise UsageError(f"'{name}' is neither a data set nor a regular file", hint, option="dataset")


def _read(path: Path, name: str, **options: Any) -> Dataset:
    """The data set of a file; the options are those of `make_dataset`."""
    try:
        with path.open("rb") as stream:
            is_parquet = stream.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC
            stream.seek(0)
            read_rows = _parquet_rows if is_parquet else _OTHER_ROWS.get(path.suffix.lower())
            rows = read_rows(path) if read_rows else read_json_rows(stream)
            return make_dataset(name, rows, unit="row" if is_parquet else "line", **options)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror or error})", "check the file and its permissions"
        ) from error


def _csv_rows(path: Path) -> Rows:
    """The rows of a CSV file by their last lines; the first line has the names of the fields. UsageError."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"it has not {len(reader.fieldnames or ())} fields, as the first line")
                yield reader.line_num, row
        except (csv.Error, ValueError) as error:
            message = f"{path}: line {reader.line_num}: {error}"
            raise UsageError(message, "check the file: a CSV begins with a header") from error


def _text_rows(path: Path) -> Rows:
    """A question a line, without answers. UsageError."""
    with path.open(encoding="utf-8-sig") as stream:
        try:
            yield from ((number, {"question": line.strip()}) for number, line in enumerate(stream, start=1) if line.strip())
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: it is not UTF-8 ({error})", "save it as UTF-8") from error


_OTHER_ROWS: Mapping[str, Callable[[Path], Rows]] = MappingProxyType({".csv": _csv_rows, ".txt": _text_rows})


def _parquet_rows(path: Path) -> Rows:
    """The numbered rows of a parquet file. UsageError if pyarrow is missing, or cannot read the file."""
    arrow_error, open_parquet = _load_pyarrow(path.name)
    number = 0
    try:
        with open_parquet(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (arrow_error, ValueError, OSError) as error:  # ValueError: a text that is not UTF-8
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        message = f"{path}: cannot be read as parquet after row {number} ({reason})"
        raise UsageError(message, "check the file, or fetch it again") from error


def _load_pyarrow(name: str) -> tuple[type[Exception], Any]:
    """The errors that pyarrow raises, and its file reader. UsageError if it is not installed: it is large, so optional."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        hint = 'pip install "pyarrow>=18"'
        raise UsageError(f"{name} is a parquet file, and pyarrow cannot be loaded ({error})", hint) from error
    return pa.ArrowException, parquet.ParquetFile
