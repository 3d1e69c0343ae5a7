"""The run folder: appended rows survive any fault, and damaged rows are refused."""

import json
import math
import os
import signal
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import made_up_runs
import pytest
from faults import set_aside
from made_up_runs import as_run, parsed

from arbitrage_cli.errors import DamagedRunError, OutputError, UsageError
from arbitrage_cli.runs.folder import RunFolder, encode, read_run_folder
from arbitrage_cli.runs.records import SOLVE
from arbitrage_cli.runs.rows import AttemptRow

RUN = json.loads(json.dumps(made_up_runs.describe({"é\u2028": 1, **{f"p{number}": 1 for number in range(20)}})))
ROUTE = RUN["decided"]["routes"][0]
ODD_TEXTS = ["plain", "\u0085 \u2028 \u2029 \x0b \x0c \x1c", '}{"id":', "\0", "é" * 50, "\\n\n\r\r\n", "\U0001f600"]


def make_row(number: int = 0, status: str = "done", **more: Any) -> dict[str, Any]:
    row = made_up_runs.make_row(number, 0, ("target", None))
    return {**row, "id": f"p{number}", "status": status, "text": ODD_TEXTS[number % len(ODD_TEXTS)], **more}


def begin(path: Path, rows: int = 3) -> list[dict[str, Any]]:
    made = [make_row(number) for number in range(rows)]
    with RunFolder(path) as folder:
        folder.save_run(as_run(RUN))
        for row in made:
            folder.append(parsed(row))
    return made


def read_all(path: Path) -> list[dict[str, Any]]:
    return [row.to_dict() for row in read_run_folder(path).rows]


def dicts(rows: Iterable[AttemptRow]) -> list[dict[str, Any]]:
    return [row.to_dict() for row in rows]


def reopened(path: Path, **options: Any) -> list[dict[str, Any]]:
    with RunFolder(path, **options) as folder:
        return [row.to_dict() for row in folder.rows]


def test_what_was_appended_is_there_again(quick_path: Path) -> None:
    rows = [make_row(number) for number in range(len(ODD_TEXTS))]
    with RunFolder(quick_path / "run") as folder:
        folder.save_run(as_run(RUN))
        for row in rows:
            folder.append(parsed(row))
        assert (folder.run, dicts(folder.rows)) == (as_run(RUN), rows)
    contents = read_run_folder(quick_path / "run")
    assert (contents.run, dicts(contents.rows)) == (as_run(RUN), rows)
    assert set_aside(quick_path / "run") == []


def test_a_file_moved_while_it_is_written_gets_all_rows(tmp_path: Path) -> None:
    results = tmp_path / "out.jsonl"
    with RunFolder(tmp_path / "out.jsonl.run", kind=SOLVE, results=results) as folder:
        folder.append(parsed(make_row(1)))
        results.rename(tmp_path / "moved.jsonl")
        folder.append(parsed(make_row(2)))
    assert len((tmp_path / "moved.jsonl").read_bytes().splitlines()) == 2


def test_rows_of_a_large_run_are_not_held_in_memory(quick_path: Path) -> None:
    text = "2 + 2 = 4. " * 100_000
    tracemalloc.start()
    try:
        with RunFolder(quick_path / "run") as folder:
            folder.save_run(as_run(RUN))
            for number in range(20):
                folder.append(parsed(make_row(number) | {"text": text}))
        contents = read_run_folder(quick_path / "run")
        assert [len(row.text) for row in contents.rows] == [len(text)] * 20
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 4 * len(text)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_nan_and_infinity_are_not_written(quick_path: Path, number: float) -> None:
    with RunFolder(quick_path / "run") as folder:
        folder.save_run(as_run(RUN))
        with pytest.raises(ValueError, match="JSON"):
            folder.append(parsed(make_row()).model_copy(update={"wall_seconds": number}))
        folder.append(parsed(make_row(1)))
    assert reopened(quick_path / "run") == [make_row(1)]


def test_everything_is_on_the_disk_when_it_is_said_to_be(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def watch(name: str) -> None:
        real = getattr(os, name)

        def call(first: Any, *rest: Any) -> Any:
            is_folder = isinstance(first, int) and stat.S_ISDIR(os.fstat(first).st_mode)
            if calls[-1:] != [done := f"{name} folder" if is_folder else name]:
                calls.append(done)
            return real(first, *rest)

        monkeypatch.setattr(os, name, call)

    with RunFolder(quick_path / "run") as folder:
        for name in ("write", "fsync", "replace"):
            watch(name)
        folder.save_run(as_run(RUN))
        assert calls == ["write", "fsync", "replace", "fsync folder"]
        calls.clear()
        folder.append(parsed(make_row()))
        assert calls == ["write", "fsync"]


def test_folder_of_a_results_file_is_synced_with_the_new_file_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, synced = tmp_path / "solved.jsonl", list[tuple[int, bool]]()
    sync = os.fsync

    def watch(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, results.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    with RunFolder(tmp_path / "solved.jsonl.run", kind=SOLVE, results=results):
        assert (tmp_path.stat().st_ino, True) in synced


def test_truncation_anywhere(quick_path: Path) -> None:
    rows = begin(quick_path / "run")
    path = quick_path / "run" / "results.jsonl"
    whole = path.read_bytes()
    ends = [place + near for place, byte in enumerate(whole) if byte == 10 for near in (-1, 0, 1)]
    for length in sorted({*range(0, len(whole), 31), *ends}):
        path.write_bytes(whole[:length])
        kept = whole[:length].count(b"\n")
        tail = whole[:length].rpartition(b"\n")[2]
        with RunFolder(quick_path / "run") as folder:
            assert dicts(folder.rows) == rows[:kept]
            for row in rows[kept:]:
                folder.append(parsed(row))
        assert path.read_bytes() == whole
        torn = quick_path / "run" / "results.jsonl.torn-1"
        assert (torn.read_bytes() if torn.exists() else b"") == tail
        torn.unlink(missing_ok=True)


def altered(**changes: Any) -> bytes:
    return json.dumps(make_row(7) | changes).encode()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", "EOF"), (b"[1]", "object"), (b"\0" * 100, "expected value"), (b'{"a":' * 100_000, "recursion"),
        (b'{"sample": 0}', "id: "), (altered(grade=None), "grade: "), (altered(schema=9), "schema: "),
        (altered(policy="best"), "policy: "), (altered(colour="blue"), "colour: "),
        (altered(steps=[make_row(7)["steps"][0] | {"cost": {"prefill_tokens": -1}}]), "steps.0.cost: "),
        (altered(wall_seconds="1"), "wall_seconds: "), (altered(timing={"draft": {"verify_batches": None}}), "timing.draft."),
        (encode(make_row(0))[:-1], "repeats an earlier row"), (altered(id="another"), "not in run.json"),
        (altered(policy="rsd", tau=0.7), "not in run.json"),
    ],
    ids=str,
)  # fmt: skip
def test_line_that_is_not_a_row_is_named_and_skipped(
    quick_path: Path, line: bytes, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A reader changes nothing. A writer moves the line to another file, so that the attempt is repeated."""
    rows = begin(quick_path / "run")
    path = quick_path / "run" / "results.jsonl"
    whole = path.read_bytes()
    first, rest = whole.split(b"\n", 1)
    path.write_bytes(before := first + b"\n" + line + b"\n" + rest + b"{torn")
    assert (read_all(quick_path / "run"), path.read_bytes(), set_aside(quick_path / "run")) == (rows, before, [])
    with RunFolder(quick_path / "run") as folder:
        assert dicts(folder.rows) == rows
    read, moved = caplog.messages
    assert all(part in read for part in (str(path), "line 2: ", words))
    assert all(part in moved for part in (str(path), "line 2: ", words, "line 5: ", "results.jsonl.torn-1"))
    assert path.read_bytes() == whole
    assert (quick_path / "run" / "results.jsonl.torn-1").read_bytes() == line + b"\n{torn"


@pytest.mark.parametrize("name", ["results.jsonl", "run.json"])
def test_link_pipe_and_device_are_refused_at_once(quick_path: Path, name: str) -> None:
    begin(quick_path / "run")
    own, other = quick_path / "run" / name, quick_path / "other"
    other.write_bytes(before := own.read_bytes() + b"torn")
    for make in (partial(os.symlink, other), partial(os.symlink, "/dev/zero"), os.mkfifo, os.mkdir):
        own.rmdir() if own.is_dir() else own.unlink()
        make(own)
        for open_it in (RunFolder, read_all):
            with pytest.raises(UsageError, match=r"symbolic links|not a regular file|Is a directory"):
                open_it(quick_path / "run")
    assert other.read_bytes() == before
    (quick_path / "somewhere").mkdir()
    (quick_path / "linked").symlink_to(quick_path / "somewhere")
    with pytest.raises(UsageError, match="symbolic links"):
        RunFolder(quick_path / "linked")


def test_line_without_end_takes_no_memory(quick_path: Path) -> None:
    begin(quick_path / "run")
    with (quick_path / "run" / "results.jsonl").open("ab") as stream:
        stream.truncate(1 << 30)
    for open_it in (RunFolder, read_all):
        with pytest.raises(DamagedRunError, match="line 4: more than 64 MiB"):
            open_it(quick_path / "run")


PARTS: Sequence[dict[str, Any]] = ({"policy": "best"}, {"tau": 0.5}, {"policy": "rsd"})
DAMAGED_DECISIONS: Sequence[Mapping[str, Any]] = (
    *({"models": {"target": None}}, {"router": 1}, {"routes": [{"tau": None}]}, {"tau_costs": 1}),
    *({"concurrency": 0}, {"router": {"name": "r", "sha256": "0", "card": []}}),
    *({"routes": []}, {"models": {}}, {"machine": {}}),
    *({"routes": [ROUTE | part]} for part in PARTS),
    *({"routes": [ROUTE | {"policy": "arbitrage", "tau": 0.5, "tau_name": name}]} for name in ("1e%", "%")),
    {"settings": RUN["decided"]["settings"] | {"kv_type": "q9_9"}},
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        *((content, "") for content in (b"", b"{", b"[]", b"\xff", b'{"schema": 2}')),
        *(
            (json.dumps(RUN | changes).encode(), f"{next(iter(changes))}")
            for changes in (
                *({"kind": "chat"}, {"dataset": RUN["dataset"] | {"sha256": -1}}, {"dataset": None}, {"samples": "all"}),
                *({"levels": 1}, {"schema": 1}, {"schema": 9}, {"mine": 1}),
            )
        ),
        *(
            (json.dumps(RUN | {"decided": RUN["decided"] | changes}).encode(), f"{next(iter(changes))}")
            for changes in DAMAGED_DECISIONS
        ),
    ],
    ids=str,
)  # fmt: skip
def test_run_json_of_another_form_is_damage(quick_path: Path, content: bytes, words: str) -> None:
    begin(quick_path / "run")
    (quick_path / "run" / "run.json").write_bytes(content)
    for open_it in (RunFolder, read_all):
        with pytest.raises((DamagedRunError, UsageError), match=rf"run\.json: .*{words}"):
            open_it(quick_path / "run")


@pytest.mark.parametrize("changes", [{"router": None}, {"models": {"target": RUN["decided"]["models"]["target"]}}])
def test_a_run_has_what_its_policies_use(quick_path: Path, changes: dict[str, Any]) -> None:
    begin(quick_path / "run")
    routes = [ROUTE | {"policy": "arbitrage", "tau": 0.5, "tau_name": None}]
    changed = RUN | {"decided": RUN["decided"] | {"routes": routes} | changes}
    (quick_path / "run" / "run.json").write_text(json.dumps(changed))
    with pytest.raises(DamagedRunError, match="missing"):
        read_run_folder(quick_path / "run")


def test_the_lock_is_released_with_its_process(quick_path: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path; from arbitrage_cli.runs.folder import RunFolder;"
        "from arbitrage_cli.runs.run import read_run;"
        f"RunFolder(Path({str(quick_path / 'run')!r})).save_run(read_run({json.dumps(RUN).encode()!r}));"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2])
    assert ended.returncode == -signal.SIGKILL
    assert reopened(quick_path / "run") == []


def test_fresh_sets_aside_what_was_there(quick_path: Path) -> None:
    rows = begin(quick_path / "run")
    with RunFolder(quick_path / "run", fresh=True) as folder:
        assert (folder.run, dicts(folder.rows)) == (None, [])
        folder.save_run(as_run(RUN))
    assert set_aside(quick_path / "run") == ["results.jsonl.old-1", "run.json.old-1"]
    old = (quick_path / "run" / "results.jsonl.old-1").read_bytes()
    assert [json.loads(line) for line in old.splitlines()] == rows


def test_temporary_files_of_a_killed_process_are_removed(quick_path: Path) -> None:
    rows = begin(quick_path / "run")
    unfinished = ("run.json", "run.json.new", "results.jsonl", "results.jsonl.torn-1", "mine")
    for name in ("run.json.new", *(f".{one}.0a1b2c3d.new" for one in unfinished)):
        (quick_path / "run" / name).touch()
    assert (reopened(quick_path / "run"), set_aside(quick_path / "run")) == (rows, [".mine.0a1b2c3d.new"])


def test_fresh_start_on_a_full_disk_keeps_the_run(quick_path: Path, failing: Callable[..., None]) -> None:
    rows = begin(quick_path / "run")
    write = os.write

    def fail(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with RunFolder(quick_path / "run", fresh=True) as folder:
        failing("write", fail)
        with pytest.raises(OutputError, match="No space left"):
            folder.save_run(as_run(RUN))
        failing("write", write)
    assert (reopened(quick_path / "run"), set_aside(quick_path / "run")) == (rows, [])


def test_run_that_has_not_begun_is_not_damaged(quick_path: Path) -> None:
    with RunFolder(quick_path), pytest.raises(UsageError, match="has not started"):
        read_run_folder(quick_path)


def test_run_that_never_began_leaves_no_folder(quick_path: Path) -> None:
    with RunFolder(quick_path / "run"):
        pass
    assert not (quick_path / "run").exists()
    (quick_path / "mine").mkdir()
    with RunFolder(quick_path / "mine"):
        pass
    assert (quick_path / "mine").exists()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    yield partial(monkeypatch.setattr, os)
    monkeypatch.undo()


def test_row_that_was_written_in_part_is_taken_back(quick_path: Path, failing: Callable[..., None]) -> None:
    rows = begin(quick_path / "run")
    write, written = os.write, list[int]()

    def write_a_part(descriptor: int, data: bytes) -> int:
        if written:
            raise OSError(28, "No space left on device")
        written.append(write(descriptor, data[:50]))
        return 50

    with RunFolder(quick_path / "run") as folder:
        failing("write", write_a_part)
        with pytest.raises(OutputError, match=r"results\.jsonl: .*No space left") as caught:
            folder.append(parsed(make_row(4)))
        assert "resume" in caught.value.hint
        failing("write", write)
        with pytest.raises(OutputError):
            folder.append(parsed(make_row(5)))
    assert reopened(quick_path / "run") == rows
    assert set_aside(quick_path / "run") == []


def test_failed_sync_is_final(quick_path: Path, failing: Callable[..., None]) -> None:
    rows = begin(quick_path / "run")
    calls: list[int] = []

    def fail(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(5, "Input/output error")

    with RunFolder(quick_path / "run") as folder:
        sync = os.fsync
        failing("fsync", fail)
        with pytest.raises(OutputError, match="Input/output error"):
            folder.append(parsed(make_row(4)))
        with pytest.raises(OutputError):
            folder.append(parsed(make_row(5)))
        failing("fsync", sync)
    assert len(calls) == 1
    assert reopened(quick_path / "run") == rows


def test_rows_are_replaced_at_once(quick_path: Path) -> None:
    rows = begin(quick_path / "run")
    with RunFolder(quick_path / "run") as folder:
        folder.rewrite(list(folder.rows)[1:])
        folder.append(parsed(make_row(3)))
    assert read_all(quick_path / "run") == [*rows[1:], make_row(3)]
