"""Loads a data set from the Hub, from the files that ship with the program, or from a JSONL, CSV, text or parquet file."""

import csv
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from arbitrage_cli.errors import UsageError, unknown
from arbitrage_cli.model_files import hub
from arbitrage_cli.model_files.hub import HubName
from arbitrage_cli.problems.answers import shown
from arbitrage_cli.problems.rows import (
    MAX_DATASET_ROWS,
    NO_MAPPING,
    BadLine,
    Dataset,
    Form,
    InputRow,
    make_dataset,
    read_json_rows,
)
from arbitrage_cli.system.files import models_folder

BATCH_ROWS = 256
MAX_PARQUET_TEXT = 1 << 28  # bytes that a parquet file may declare, and characters that all of its cells may have
MAX_PARQUET_CHUNK = 1 << 26  # bytes of a column in a row group, for which pyarrow takes six times as much memory
MAX_PARQUET_CELLS = 1 << 23
_PARQUET_MAGIC = b"PAR1"
Rows = Iterator[tuple[int, InputRow]]

PUBLISHED: Mapping[str, HubName] = {
    name: HubName(repo, file, kind="dataset")
    for name, repo, file in (
        ("math500", "HuggingFaceH4/MATH-500", "test.jsonl"),
        ("gsm8k", "openai/gsm8k", "main/test-00000-of-00001.parquet"),
        ("olympiadbench", "Hothan/OlympiadBench", "OlympiadBench/OE_TO_maths_en_COMP/OE_TO_maths_en_COMP.parquet"),
        ("aime24", "HuggingFaceH4/aime_2024", "data/train-00000-of-00001.parquet"),
        ("aime25", "math-ai/aime25", "test.jsonl"),
        ("amc23", "math-ai/amc23", "test-00000-of-00001.parquet"),
        ("humaneval", "openai/openai_humaneval", "openai_humaneval/test-00000-of-00001.parquet"),
        ("mbpp", "google-research-datasets/mbpp", "sanitized/test-00000-of-00001.parquet"),
        ("arc", "allenai/ai2_arc", "ARC-Challenge/test-00000-of-00001.parquet"),
    )
}
"""The supported data sets on the Hub, and the file that contains each."""

SHIPPED = ("builtin", "builtin-dev")
"""Problems for the built-in models. Use the second data set for experiments and for choosing a tau."""

DATASETS = (*SHIPPED, *PUBLISHED)


def load_dataset(
    name_or_path: str,
    *,
    offline: bool,
    mapping: Mapping[str, str] = NO_MAPPING,
    needs_answers: bool = True,
    forms: Sequence[Form] = (),
    max_rows: int | None = None,
) -> Dataset:
    """Load a data set by name or path. A data set on the Hub is downloaded if it is not in the cache.

    `mapping`, `needs_answers` and `max_rows` apply only to files; see `make_dataset`. Rows after the first `max_rows` are not
    read. Raises UsageError if the data set is unknown or invalid, and the errors of `hub.find`.
    """
    if mapping and name_or_path in DATASETS:
        raise UsageError(f"--map is for files, not for the data set {name_or_path}", "omit --map")
    if published := PUBLISHED.get(name_or_path):
        (path,) = hub.find(published, offline=offline)
        return _read(path, name_or_path, revision=hub.commit_of(published, path), forms=forms)
    if name_or_path in SHIPPED:
        return _read(models_folder() / f"{name_or_path}.jsonl", name_or_path)
    path = _existing(name_or_path)
    name = Path(name_or_path).name
    return _read(path, name, max_rows, mapping=mapping, needs_answers=needs_answers, forms=forms)


def _existing(name: str) -> Path:
    with suppress(OSError, RuntimeError, ValueError):  # a name that is too long, an unknown user's ~, a NUL
        path = Path(name).expanduser()
        if path.is_file():
            return path
    hint = unknown("data set", name, DATASETS, more="; or use the path of a JSONL, CSV, text or parquet file").hint
    raise UsageError(f"'{name}' is neither a data set nor a regular file", hint, option="dataset")


def _read(path: Path, name: str, max_rows: int | None = None, **options: Any) -> Dataset:
    try:
        with path.open("rb") as stream:
            is_parquet = stream.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC
            stream.seek(0)
            rows: Iterator[tuple[int, InputRow] | BadLine]
            if is_parquet:
                rows = _parquet_rows(path, is_whole=max_rows is None)
            else:
                read_rows = _OTHER_ROWS.get(path.suffix.lower())
                rows = read_rows(path) if read_rows else read_json_rows(stream)
            return make_dataset(name, itertools.islice(rows, max_rows), unit="row" if is_parquet else "line", **options)
    except (OSError, UnicodeDecodeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise UsageError(f"{path}: cannot be read ({reason})", "check the file, its permissions and its encoding") from error


def _csv_rows(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            _refuse_repeated(path, reader.fieldnames or ())
            for row in reader:
                if None in row or None in row.values():
                    raise csv.Error(f"expected {len(reader.fieldnames or ())} fields, as in the header")
                yield reader.line_num, row
        except csv.Error as error:
            message = f"{path}: line {reader.line_num}: {error}"
            raise UsageError(message, "check that the first line of the file is a header") from error


def _refuse_repeated(path: Path, names: Sequence[str]) -> None:
    """Raise UsageError if two columns have the same name. A spreadsheet may have saved several columns without a name."""
    repeated = [name for name, count in Counter(names).items() if name and count > 1]
    if repeated:
        raise UsageError(f"{path}: two columns have the name '{shown(repeated[0])}'", "rename or remove one of them")


def _text_rows(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig") as stream:
        yield from ((number, {"question": line.strip()}) for number, line in enumerate(stream, start=1) if line.strip())


_OTHER_ROWS: Mapping[str, Callable[[Path], Rows]] = {".csv": _csv_rows, ".txt": _text_rows}


def _parquet_rows(path: Path, *, is_whole: bool) -> Rows:
    """Yield the rows of a parquet file and their numbers, one at a time. `is_whole` says that all rows will be read.

    Strings stay dictionary-encoded until their row is read. Otherwise, a small file that repeats a long cell could fill the
    memory.
    """
    pa, parquet = _load_pyarrow(path.name)
    number = 0
    try:
        metadata = parquet.read_metadata(path)
        if is_whole and metadata.num_rows > MAX_DATASET_ROWS:
            raise _too_large(path, f"{MAX_DATASET_ROWS:,} rows")
        _check_declared_size(path, metadata)
        _refuse_repeated(path, metadata.schema.to_arrow_schema().names)
        columns = map(metadata.schema.column, range(metadata.num_columns))
        texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
        to_python = _ToPython(pa, path)
        with parquet.ParquetFile(path, metadata=metadata, read_dictionary=texts) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                for index in range(batch.num_rows):
                    number += 1
                    yield number, {name: to_python(batch[name][index]) for name in batch.schema.names}
    except (pa.ArrowException, ValueError, OSError) as error:  # ValueError: not UTF-8
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        message = f"{path}: cannot be read as parquet after row {number} ({reason})"
        raise UsageError(message, "check the file, or download it again") from error


def _check_declared_size(path: Path, metadata: Any) -> None:
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
    if sum(chunk.total_uncompressed_size for chunk in chunks) > MAX_PARQUET_TEXT:
        raise _too_large(path, f"{MAX_PARQUET_TEXT:,} bytes")
    for chunk in chunks:
        if chunk.total_uncompressed_size > MAX_PARQUET_CHUNK:
            column = f"column '{shown(chunk.path_in_schema)}' has {chunk.total_uncompressed_size:,} bytes"
            message = f"{path}: {column} in one row group; the limit is {MAX_PARQUET_CHUNK:,}"
            raise UsageError(message, "shorten the cells, or write the file with more row groups")
    if sum(chunk.num_values for chunk in chunks) > MAX_PARQUET_CELLS:
        raise _too_large(path, f"{MAX_PARQUET_CELLS:,} cells")


def _too_large(path: Path, limit: str) -> UsageError:
    return UsageError(f"{path}: the file has more than {limit}", "remove rows or columns that you do not need")


class _ToPython:
    """Converts the cells of a file to Python values. Accepts at most MAX_PARQUET_TEXT characters in total."""

    def __init__(self, pa: Any, path: Path) -> None:
        self._pa = pa
        self._path = path
        self._num_characters = 0

    def __call__(self, cell: Any) -> Any:
        if isinstance(cell, self._pa.ListScalar):
            return None if cell.values is None else [self(part) for part in cell.values]
        if isinstance(cell, self._pa.StructScalar):
            return {name: self(part) for name, part in cell.items()} if cell.is_valid else None
        value = cell.as_py()
        if isinstance(cell, self._pa.FloatScalar) and value is not None:
            return float(str(np.float32(value)))  # 0.1, not 0.10000000149011612
        if isinstance(value, Decimal):
            return f"{value:f}"
        if isinstance(value, str | bytes):
            self._num_characters += len(value)
            if self._num_characters > MAX_PARQUET_TEXT:
                raise _too_large(self._path, f"{MAX_PARQUET_TEXT:,} characters of text")
        return value


def _load_pyarrow(name: str) -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        reason = f"{name} is a parquet file, but pyarrow cannot be loaded ({error})"
        raise UsageError(reason, 'pip install "pyarrow>=18"') from error
    return pa, parquet
