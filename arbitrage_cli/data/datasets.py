"""From a name to a data set: by its name on the Hub, one of those that ship with the program, or a file.

Knows where rows come from and how files hold them; what is in a row is for `datasets`, what an answer means for grading.
The fields of published sets need no table: all of them use names that `datasets` looks for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from arbitrage_cli.data.rows import DataSet, Row, json_rows, make_data_set
from arbitrage_cli.errors import UsageError
from arbitrage_cli.model_files import hub
from arbitrage_cli.model_files.names import HubName
from arbitrage_cli.model_files.pairs import models_folder

BATCH_ROWS = 256
_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True, slots=True)
class Published:
    """A data set on the Hub: its repository, the one file of it that is meant, and what is in there."""

    repo: str
    file: str
    note: str


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "math500": Published("HuggingFaceH4/MATH-500", "test.jsonl", "500 problems of MATH, levels 1 to 5"),
        "gsm8k": Published(
            "openai/gsm8k", "main/test-00000-of-00001.parquet", "1,319 word problems of grade-school mathematics"
        ),
        "olympiadbench": Published(
            "Hothan/OlympiadBench",
            "OlympiadBench/OE_TO_maths_en_COMP/OE_TO_maths_en_COMP.parquet",
            "674 olympiad problems in English, text only, with answers that can be compared",
        ),
        "aime24": Published("HuggingFaceH4/aime_2024", "data/train-00000-of-00001.parquet", "the 30 problems of AIME 2024"),
        "aime25": Published("math-ai/aime25", "test.jsonl", "the 30 problems of AIME 2025"),
        "amc23": Published("math-ai/amc23", "test-00000-of-00001.parquet", "40 problems of AMC 12, 2023"),
    }
)

SHIPPED: Mapping[str, str] = MappingProxyType(
    {
        "builtin": "problems for the built-in models; no network needed",
        "builtin-dev": "the same kind of problems, for trying out and choosing a tau",
    }
)


def known_datasets() -> Mapping[str, str]:
    """Every data set that has a name, and a line on what it is."""
    return {**SHIPPED, **{name: f"{published.note} ({published.repo})" for name, published in PUBLISHED.items()}}


def load_dataset(
    name_or_path: str,
    *,
    offline: bool,
    mapping: Mapping[str, str] = MappingProxyType({}),
    watch: hub.Watch | None = None,
) -> DataSet:
    """The data set of that name, fetched from the Hub unless it is here; of what is no name, the JSONL or parquet file there.

    `mapping` names the fields of a file, as in `datasets.make_data_set`. Errors: UsageError, HubError, ModelFileError.
    """
    if mapping and name_or_path in known_datasets():
        raise UsageError(f"the fields of {name_or_path} are known", "--map is for files")
    if name_or_path in PUBLISHED:
        return _load_published(name_or_path, offline=offline, watch=watch)
    if name_or_path in SHIPPED:
        path = models_folder() / f"{name_or_path}.jsonl"
        if not path.is_file():
            raise UsageError(f"{name_or_path} is not part of this installation ({path})", "install the program anew")
        return _read(path, name_or_path)
    return _read(_existing(name_or_path), Path(name_or_path).name, mapping=mapping)


def _load_published(name: str, *, offline: bool, watch: hub.Watch | None) -> DataSet:
    published = PUBLISHED[name]
    if published.file.endswith(".parquet"):
        _load_pyarrow(name)  # before anything is downloaded
    wanted = HubName(published.repo, published.file, kind="dataset")
    (path,) = hub.find(wanted, offline=offline, watch=watch)
    return _read(path, name, revision=hub.commit_of(wanted, path))


def _existing(name: str) -> Path:
    """The user's file. UsageError if there is none."""
    try:
        path = Path(name).expanduser()
        is_file, is_there = path.is_file(), path.exists()
    except (OSError, RuntimeError, ValueError):  # too long for a name, ~ of an unknown user, a NUL
        is_file = is_there = False
    if is_there and not is_file:
        raise UsageError(f"{name} is no file", "give a JSONL or parquet file: it is read once more when a run is resumed")
    if not is_file:
        names = ", ".join(known_datasets())
        raise UsageError(f"'{name}' is no data set and no file", f"data sets: {names}; or a JSONL or parquet file")
    return path


def _read(
    path: Path, name: str, *, mapping: Mapping[str, str] = MappingProxyType({}), revision: str | None = None
) -> DataSet:
    try:
        with path.open("rb") as stream:
            unit: Literal["line", "row"] = "row" if stream.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC else "line"
            stream.seek(0)
            rows = _parquet_rows(path, name) if unit == "row" else json_rows(stream)
            return make_data_set(name, rows, mapping=mapping, revision=revision, unit=unit)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror or error})", "check the file and its permissions"
        ) from error


def _parquet_rows(path: Path, name: str) -> Iterator[tuple[int, Row]]:
    """The numbered rows of a parquet file. UsageError if pyarrow is missing, or cannot make sense of the file."""
    arrow_error, open_parquet = _load_pyarrow(name)
    number = 0
    try:
        with open_parquet(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (arrow_error, ValueError, OSError) as error:  # ValueError: a text that is not UTF-8
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"{name}: cannot be read as parquet after row {number} ({reason})", "check the file, or fetch it anew"
        ) from error


def _load_pyarrow(name: str) -> tuple[type[Exception], Any]:
    """What pyarrow raises, and its reader of files. It is optional, being large: UsageError if it is not installed."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        hint = 'pip install "pyarrow>=18"'
        raise UsageError(f"{name} is a parquet file, and pyarrow cannot be loaded ({error})", hint) from error
    return pa.ArrowException, parquet.ParquetFile
