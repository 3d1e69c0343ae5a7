"""Measurements, and how they are stored."""

import fcntl
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from made_up_tuning import HERE, make_tuned

from arbitrage_cli.costs import measure, probing, store
from arbitrage_cli.costs.probing import LoadMeter
from arbitrage_cli.costs.store import Tuned, TunedFile, find_measurements, keep_tuned, machine_here, read_cache, tuned_file
from arbitrage_cli.errors import OutputError
from arbitrage_cli.inference.backend import Floats, LoadOptions
from arbitrage_cli.inference.llama.backend import LlamaBackend
from arbitrage_cli.model_files.checksums import sha256_of


def measured(tiny: Mapping[str, Path], threads: int | None = None, note: Callable[[str], None] = lambda note: None) -> Tuned:
    """What is measured of a tiny model in a short time."""
    load = LoadOptions(256, threads=threads)
    return measure.measure_and_keep({"target": str(tiny["draft"])}, load, lambda *report: None, note, limit=0.001)["target"]


class Compiling(LlamaBackend):
    """Seems to run on a GPU whose driver compiles for 40 seconds when a number of tokens is first computed."""

    seconds = 0.0

    def __init__(self, path: Path, options: LoadOptions) -> None:
        super().__init__(path, options)
        self.card = replace(self.card, gpu_layers=-1)

    def decode(self, sequences: Sequence[int], positions: Sequence[int], tokens: Sequence[int], **options: Any) -> Floats:
        sizes = self.__dict__.setdefault("sizes", set())
        Compiling.seconds += 0.001 if len(tokens) in sizes else 40.0
        sizes.add(len(tokens))
        return super().decode(sequences, positions, tokens, **options)


def test_costs_exclude_what_a_gpu_compiles_first(tiny: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "open_model", lambda path, load, progress: Compiling(Path(path), load))
    monkeypatch.setattr(measure, "LoadMeter", lambda: LoadMeter(lambda: Compiling.seconds, float))
    assert max(measured(tiny, 1).costs.batches) < 1.0


def test_a_later_measurement_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    elsewhere = make_tuned(machine=replace(HERE, cores=2))
    keep_tuned(path, [make_tuned(), elsewhere])
    keep_tuned(path, [make_tuned(threads=7)])
    assert {one.machine.cores: one.threads for one in read_cache(path).tuned} == {8: 7, 2: 3}


def test_measurements_that_end_together_are_all_kept(tmp_path: Path) -> None:
    path, together = tmp_path / "new" / "tuned.json", threading.Barrier(8)

    def keep(digit: int) -> None:
        together.wait()
        keep_tuned(path, [make_tuned(sha256=f"{digit:064}")])

    with ThreadPoolExecutor(8) as pool:
        [*pool.map(keep, range(8))]
    assert len(read_cache(path).tuned) == 8


GOOD = json.loads(json.dumps(asdict(make_tuned())))
ZEROS = {"batches": [0.0] * 5, "prefill_token": 0.0}


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{", "9" * 5000, "[" * 100_000, '{"tuned": []}', '{"schema": 1, "tuned": [{}]}',
        {"threads": 0}, {"threads": 1_000_000}, {"created": "yesterday"}, {"created": "2999-01-01T00:00:00+00:00"},
        {"costs": ZEROS}, {"costs": {"batches": [-1.0] * 5, "prefill_token": 0.1}},
        {"costs": GOOD["costs"] | {"batches": [1e9] * 5}}, {"costs": GOOD["costs"] | {"batches": [2.0, 1.0, 1.0, 1.0, 1.0]}},
        {"costs": GOOD["costs"] | {"batches": [1.0]}}, {"costs": GOOD["costs"] | {"error": -0.1}},
        {"costs": GOOD["costs"] | {"error": 1e300}},
    ],
)  # fmt: skip
def test_a_damaged_file_counts_as_empty(tmp_path: Path, content: str | dict[str, Any]) -> None:
    path, notes = tmp_path / "tuned.json", list[str]()
    path.write_text(content if isinstance(content, str) else json.dumps({"schema": 1, "tuned": [GOOD | content]}))
    assert (read_cache(path, notes.append), len(notes)) == (TunedFile(), 1)
    keep_tuned(path, [make_tuned()])
    assert len(read_cache(path, pytest.fail).tuned) == 1


def test_good_entries_stay_beside_an_invalid_one(tmp_path: Path) -> None:
    path, notes = tmp_path / "tuned.json", list[str]()
    entries = [GOOD, {**GOOD, "sha256": "b" * 64, "created": "2999-01-01T00:00:00+00:00"}]
    path.write_text(json.dumps({"schema": 1, "tuned": entries}))
    assert ([one.sha256 for one in read_cache(path, notes.append).tuned], len(notes)) == ([GOOD["sha256"]], 1)


def test_a_file_of_another_version_is_not_replaced(tmp_path: Path) -> None:
    path, notes = tmp_path / "tuned.json", list[str]()
    path.write_text(content := '{"schema": 2, "tuned": [{"new": 1}]}')
    assert (read_cache(path, notes.append).tuned, len(notes)) == ((), 1)
    with pytest.raises(OutputError):
        keep_tuned(path, [make_tuned()])
    assert path.read_text() == content


def test_a_disturbed_measurement_is_used_for_an_hour_and_replaces_no_good_one(
    tiny: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    good = make_tuned(machine_here(), sha256_of([tiny["draft"]]))

    def found_after(age: timedelta, *stored: Tuned) -> list[Tuned]:
        tuned_file().unlink(missing_ok=True)
        about = replace(good, threads=1, is_disturbed=True, created=(datetime.now(UTC) - age).isoformat())
        keep_tuned(tuned_file(), stored)
        keep_tuned(tuned_file(), [about])
        return [*find_measurements({"draft": str(tiny["draft"])}, LoadOptions()).values()]

    assert [one.threads for one in found_after(timedelta(minutes=50))] == [1]
    assert found_after(timedelta(minutes=70)) == []
    assert found_after(timedelta(), good) == [good]


def test_measurements_hold_for_one_machine_and_one_way_to_load(
    tiny: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    kept = make_tuned(machine_here(), sha256_of([tiny["draft"]]))
    for stored, load, is_found in (
        (kept, LoadOptions(), True),
        (kept, LoadOptions(kv_type="q8_0"), False),
        (replace(kept, machine=replace(kept.machine, gpu="NVIDIA H100")), LoadOptions(), False),
        (replace(kept, machine=replace(kept.machine, cpu="another")), LoadOptions(), False),
    ):
        tuned_file().unlink(missing_ok=True)
        keep_tuned(tuned_file(), [stored])
        assert bool(find_measurements({"draft": str(tiny["draft"])}, load)) == is_found


def test_a_disturbed_measurement_is_kept_as_approximate(
    tiny: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(store, "logical_processors", lambda: 2)
    monkeypatch.setattr(
        measure, "LoadMeter", lambda: LoadMeter(itertools.count().__next__, float)
    )  # each probe takes a second
    notes = list[str]()
    assert measured(tiny, 2, notes.append).costs.decode == 1.0
    assert ([one.is_disturbed for one in read_cache(tuned_file()).tuned], notes) == ([True], [])
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    assert measured(tiny, 2, notes.append).costs.decode == 1.0
    assert "cannot be stored" in notes[-1]


def test_no_more_threads_than_processors_are_used(tiny: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "logical_processors", lambda: 2)
    made = measured(tiny, 512)
    assert (made.threads, made.loading.threads) == (2, 512)


def test_the_machine_s_threads_are_kept_beside_other_programs(
    tiny: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Such a measurement is approximate."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(measure, "threads_without_costs", lambda path, load: 2)
    monkeypatch.setattr(probing, "physical_cores", lambda: 2)
    monkeypatch.setattr(probing, "other_seconds", time.perf_counter)  # one core is always busy
    assert measured(tiny).threads == 2
    assert [one.is_disturbed for one in read_cache(tuned_file()).tuned] == [True]


def test_a_process_that_holds_the_lock_does_not_block_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tuned.json"
    keep_tuned(path, [])
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.01)
    with (tmp_path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match=r"/lock' could not be acquired"):
            keep_tuned(path, [])
    keep_tuned(path, [])


def test_a_pipe_in_place_of_the_file_blocks_nothing(tmp_path: Path) -> None:
    path, notes = tmp_path / "tuned.json", list[str]()
    os.mkfifo(path)
    assert (read_cache(path, notes.append), len(notes)) == (TunedFile(), 1)
    with pytest.raises(OutputError):
        keep_tuned(path, [])
