"""The choice of the number of threads, with a simulated clock, and the stored measurements."""

import fcntl
import itertools
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_tuning import HERE, make_tuned
from scripted_models import Continuation, ScriptedBackend

from arbitrage_cli.costs import measure, store
from arbitrage_cli.costs.measure import DECODED, ROUNDS, Probes, probe, thread_counts, try_threads
from arbitrage_cli.costs.store import Tuned, TunedFile, find_measurements, keep_tuned, machine_here, read_cache, tuned_file
from arbitrage_cli.errors import OutputError
from arbitrage_cli.inference.backend import Floats, LoadOptions
from arbitrage_cli.inference.llama.backend import LlamaBackend
from arbitrage_cli.inference.unit_costs import COST_ERROR, UnitCosts
from arbitrage_cli.model_files.checksums import sha256_of

Seconds = Callable[[int], float]  # per token, by number of threads


class Slow(ScriptedBackend):
    def __init__(self, decode: Seconds, read: Seconds, context_size: int = 512) -> None:
        super().__init__("slow", lambda question, solution: Continuation("", 1.0), LoadOptions(context_size))
        self._decode_seconds, self._read_seconds = decode, read
        self.threads = 0
        self.now = 0.0
        self.tried: list[int] = []

    def clock(self) -> float:
        return self.now

    def use_threads(self, count: int) -> None:
        self.threads = count
        self.tried.append(count)

    def read(self, sequence: int, position: int, tokens: Sequence[int], **options: Any) -> None:
        assert position + len(tokens) <= self.card.context_size
        self.now += self._read_seconds(self.threads) * len(tokens)

    def decode(self, sequences: Sequence[int], positions: Sequence[int], tokens: Sequence[int], **options: Any) -> Floats:
        assert max(positions) < self.card.context_size
        alone = len(tokens) == 1
        self.now += (self._decode_seconds if alone else self._read_seconds)(self.threads) * len(tokens)
        return np.zeros((len(tokens), self.card.vocabulary_size), np.float32)

    def drop(self, sequence: int, position: int) -> None:
        pass


def tune(decode: Seconds, read: Seconds, cores: int = 8) -> tuple[int, Slow]:
    backend = Slow(decode, read)
    try_threads(backend, thread_counts(cores), clock=backend.clock)
    return backend.threads, backend


@pytest.mark.parametrize(
    ("decode", "read", "threads"),
    [
        (lambda n: 0.1 / n, lambda n: 0.01 / n, 8),  # more is better
        (lambda n: 0.001 * n, lambda n: 0.0001, 1),  # a small model
        (lambda n: 0.1 / min(n, 4), lambda n: 0.001 / min(n, 4), 4),  # memory is the bound: the others stay free
        (lambda n: 0.1 / min(n, 4), lambda n: 0.1 / n, 8),  # but reading still gains
        (lambda n: 0.1 / n if n < 8 else 1.0, lambda n: 0.01, 6),  # some of the cores are slow ones
    ],
)
def test_the_least_number_that_is_about_as_fast_as_any(decode: Seconds, read: Seconds, threads: int) -> None:
    assert tune(decode, read)[0] == threads


def test_a_turn_that_was_disturbed_does_not_count() -> None:
    disturbed = itertools.chain([50.0], itertools.repeat(1.0))
    chosen, _ = tune(lambda n: 0.1 / n * (next(disturbed) if n == 8 else 1.0), lambda n: 0.01 / n)
    assert chosen == 8


def test_llama_computes_with_the_threads_it_is_told(tiny: Mapping[str, Path]) -> None:
    with LlamaBackend(tiny["draft"], LoadOptions(256, threads=2)) as backend:
        assert [*try_threads(backend, [1])] == [1]
        assert backend.card.threads == 1
        backend.read(0, 0, [1, 2, 3])


def test_costs_of_a_model_with_known_speeds() -> None:
    backend = Slow(lambda threads: 1.0, lambda threads: 0.25)
    (probes,) = probe({"target": backend}, clock=backend.clock, limit=60.0).values()
    assert replace(probes.costs, error=0.0) == UnitCosts((1.0, 1.0, 1.0, 2.0, 4.0), 0.25, error=0.0)
    assert 0.8 * COST_ERROR < probes.costs.error < COST_ERROR
    assert len(probes.batches[16]) == ROUNDS


def error_of(*factors: float, rounds: int = 6) -> float:
    """The error of the costs of a model whose speed changes by these factors, each of which lasts for some rounds."""
    return Probes([factor for factor in factors for _ in range(4 * rounds)], {}, {}).error


def test_the_error_of_costs_follows_their_change_during_the_measurement() -> None:
    """Without a change, much of the usual error is left, because changes between runs take longer than a measurement."""
    assert error_of(1.0, rounds=1) == pytest.approx(COST_ERROR)
    assert 0.7 * COST_ERROR < error_of(1.0, 1.0, 1.0, 1.0) < 0.8 * COST_ERROR
    assert error_of(1.0, 1.5) > 2 * COST_ERROR
    assert error_of(1.0, 1.5, 1.0, 1.5) > error_of(1.0, 1.2, 1.0, 1.2) > error_of(1.0, 1.1, 1.0, 1.1)


def test_a_disturbed_round_hardly_changes_the_error_of_costs() -> None:
    quiet, disturbed = (Probes([1.0] * 92 + [last] * 4, {}, {}) for last in (1.0, 50.0))
    assert disturbed.error == pytest.approx(quiet.error)


@pytest.mark.parametrize(("limit", "rounds"), [(0.0, 1), (21.0, 1), (22.0, 2)])
def test_probes_end_at_the_limit_but_each_runs_once(limit: float, rounds: int) -> None:
    """A round takes 21.5 s, and a trial of a number of threads takes 7 s."""
    backend = Slow(lambda threads: 1.0, lambda threads: 0.25)
    (probes,) = probe({"target": backend}, clock=backend.clock, limit=limit).values()
    assert {len(times) for times in probes.batches.values()} == {rounds}
    began = backend.clock()
    assert [*try_threads(backend, [1, 2, 4, 8], clock=backend.clock, limit=limit)][-1] == 8
    assert backend.clock() - began <= limit + 7.0


def test_a_disturbed_probe_changes_no_cost() -> None:
    disturbed = itertools.chain([50.0], itertools.repeat(1.0))
    backend = Slow(lambda threads: next(disturbed), lambda threads: 0.25)
    (probes,) = probe({"target": backend}, clock=backend.clock, rounds=3).values()
    assert probes.costs.decode == 1.0


def test_models_with_a_short_context_or_without_rollback_are_measured(tiny: Mapping[str, Path]) -> None:
    for name, size in (("draft", 64), ("hybrid", 256)):
        with LlamaBackend(tiny[name], LoadOptions(size, threads=1)) as backend:
            (probes,) = probe({"target": backend}, rounds=1).values()
            assert probes.costs.decode > 0


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
    monkeypatch.setattr(measure, "clock_for", lambda cards: lambda: Compiling.seconds)
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
    path.write_text(json.dumps({"schema": 1, "tuned": entries, "advice": [{}]}))
    assert ([one.sha256 for one in read_cache(path, notes.append).tuned], len(notes)) == ([GOOD["sha256"]], 2)


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


def is_disturbed(decode: Seconds, batch: float = 1.0, *, is_on_gpu: bool = False) -> bool:
    """Whether a measurement is disturbed in which each token of a batch takes this many seconds."""
    backend = Slow(decode, lambda threads: batch)
    return probe({"target": backend}, clock=backend.clock, limit=1e6)["target"].is_disturbed(is_on_gpu=is_on_gpu)


def test_costs_that_cannot_be_are_disturbed() -> None:
    """A batch of 16 takes more than one token and less than 16, and the same work takes about the same time."""
    slower = itertools.count(1)
    assert not is_disturbed(lambda threads: 1.0, 0.2)
    assert is_disturbed(lambda threads: 1.0, 0.05)
    assert not is_disturbed(lambda threads: 1.0, 0.05, is_on_gpu=True)
    assert is_disturbed(lambda threads: 1.0, 1.1)
    assert is_disturbed(lambda threads: 1.0 if next(slower) <= ROUNDS // 2 * DECODED else 2.0, 0.2)


def test_a_disturbed_measurement_is_noted_and_kept_as_approximate(
    tiny: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(measure, "clock_for", lambda cards: itertools.count().__next__)  # each piece of work takes a second
    notes = list[str]()
    assert measured(tiny, 1, notes.append).costs.decode == 1.0
    assert ([one.is_disturbed for one in read_cache(tuned_file()).tuned], len(notes)) == ([True], 1)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    assert measured(tiny, 1, notes.append).costs.decode == 1.0
    assert "cannot be stored" in notes[-1]


def test_no_more_threads_than_processors_are_used(tiny: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "logical_processors", lambda: 2)
    made = measured(tiny, 512)
    assert (made.threads, made.loading.threads) == (2, 512)


def test_fewer_threads_are_tried_beside_other_programs(
    tiny: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Such a measurement is approximate, because the machine has more cores."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(measure, "threads_without_costs", lambda path, load: 4)
    monkeypatch.setattr(measure, "free_cores", lambda: 2)
    assert measured(tiny).threads <= 2
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
