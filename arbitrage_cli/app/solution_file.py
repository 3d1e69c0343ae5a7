"""The output file of `solve -o`: one JSON record per input line, in order, so that the command can resume.

After `append` returns, the record survives a killed process or a power failure.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

from arbitrage_cli.errors import ArbitrageError, OutputError, UsageError
from arbitrage_cli.runs.schema import read_solution
from arbitrage_cli.runs.started import StartedMarks
from arbitrage_cli.system.files import write_all

Record = Mapping[str, Any]
_BEGINNING = b'{"id": "'
ANOTHER = "choose another file: --output FILE.jsonl"
OTHER_FORMATS = (".csv", ".tsv", ".txt", ".parquet", ".xlsx")


class SolutionFile(AbstractContextManager["SolutionFile"]):
    """The records in a file. The file is locked until it is closed."""

    def __init__(self, path: Path) -> None:
        """Open or create the file and lock it.

        Raises UsageError if the suffix belongs to another format, or if the path is not a regular file, cannot be written,
        or is locked by another process.
        """
        self.path = path
        if path.suffix.lower() in OTHER_FORMATS:
            hint = f"{ANOTHER}; to write only answers, use --format {'tsv' if path.suffix != '.txt' else 'text'} > FILE"
            raise UsageError(f"{path}: records are written as JSONL, not as {path.suffix[1:]}", hint, option="output_file")
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: not a regular file, so the command could not be resumed", ANOTHER)
        self._is_new = not path.exists()
        with contextlib.ExitStack() as stack:
            with self._raising(UsageError, "cannot be written", ANOTHER):
                self._file: BinaryIO = stack.enter_context(path.open("a+b"))
            with self._raising(UsageError, "another process is writing to this file", ANOTHER):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._stack = stack.pop_all()
        self.started = StartedMarks(path.with_name(f".{path.name}.started"))
        self.started.load()

    def __exit__(self, *error: object) -> None:
        self.started.close()
        if self._is_new and not os.fstat(self._file.fileno()).st_size:
            self.path.unlink(missing_ok=True)
        self._stack.close()

    def records(self) -> Iterator[Record]:
        """Yield the records and remove an unfinished last line. Raises UsageError if a line is not a record."""
        self._file.seek(0)
        length = 0
        for number, line in enumerate(iter(self._file.readline, b""), start=1):
            if not line.endswith(b"\n") and _is_unfinished_record(line):
                self._file.truncate(length)
                return
            length += len(line)
            try:
                record = read_solution(line)
            except ValueError as error:
                message = f"{self.path}: line {number} is not a record of arbitrage solve ({error})"
                raise UsageError(message, ANOTHER) from error
            yield record

    def append(self, record: str) -> None:
        """Write and sync a record. Raises OutputError if the disk is full or fails."""
        with self._raising(OutputError, "cannot be written", "free disk space, then run the command again to resume"):
            write_all(self._file.fileno(), record.encode() + b"\n")
            os.fsync(self._file.fileno())

    @contextlib.contextmanager
    def _raising(self, kind: type[ArbitrageError], what: str, hint: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise kind(f"{self.path}: {what} ({error.strerror or error})", hint) from error


def _is_unfinished_record(line: bytes) -> bool:
    """Return whether the last line is an incomplete record, left by a killed process. Any other text is kept."""
    begun = line.rstrip(b"\0")  # left by a power cut
    with contextlib.suppress(ValueError):
        return bool(read_solution(begun))
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(begun)
        return False
    return begun[: len(_BEGINNING)] == _BEGINNING[: len(begun)]
