"""When token costs are measured: for policies that need them, before the first problem, and once."""

import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import fake_hub
import pytest
from cli import TIMEOUT, Process, read_line, start
from commands import MATH, SCRIPTED, Shown, bench, refused, solve, typed
from faults import rows_of, run_json, write_problems
from made_up_runs import typed_figures
from made_up_tuning import make_tuned, unit_costs

from arbitrage_cli.app.asking.naming import choose_models
from arbitrage_cli.app.asking.request import ask, ask_to_compare
from arbitrage_cli.app.commands.bench import BenchRun
from arbitrage_cli.app.deciding.decide import decide
from arbitrage_cli.app.deciding.gather import fetch_and_gather
from arbitrage_cli.app.deciding.prepare import measure_costs
from arbitrage_cli.app.entries.ask_advice import advise_pair
from arbitrage_cli.app.options import AdviceOptions, Options
from arbitrage_cli.costs.store import (
    Tuned,
    keep_tuned,
    loading_of,
    machine_here,
    read_cache,
    tuned_file,
)
from arbitrage_cli.errors import OutputError
from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.model_files.checksums import sha256_of
from arbitrage_cli.model_files.pairs import find_files
from arbitrage_cli.runs.run import Setup
from arbitrage_cli.system.files import models_folder
from arbitrage_cli.types import ByRole

BOTH = ["draft", "target"]
FILES = {role: f"builtin:{role}" for role in BOTH}  # a pair without a checker
HUB = {role: f"user/{role}-GGUF" for role in BOTH}


@pytest.fixture
def measured(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The models of each measurement, whose costs are made up. At first, no costs are stored."""
    calls = list[list[str]]()

    def measure(paths: ByRole[str], load: LoadOptions, *rest: object) -> ByRole[Tuned]:
        calls.append([*paths])
        made = {
            role: make_tuned(machine_here(), sha256_of([Path(paths[role])]), 1, loading=loading_of(load)) for role in paths
        }
        keep_tuned(tuned_file(), [*made.values()])
        return made

    monkeypatch.setenv("XDG_CONFIG_HOME", str(quick_path))
    monkeypatch.setattr("arbitrage_cli.app.deciding.prepare.measure_and_keep", measure)
    return calls


@pytest.mark.parametrize(
    ("values", "roles"),
    [
        ({}, [BOTH]), *(({"policy": policy}, [BOTH]) for policy in ("speculative", "target,draft")),
        *(({"policy": policy}, []) for policy in ("target", "draft")),
        ({"policy": "agree"}, [[*BOTH, "check"]]), ({**FILES, "policy": "agree"}, [BOTH]),
        *((SCRIPTED | {"policy": policy}, []) for policy in ("entropy", "target,draft")),
    ],
    ids=str,
)  # fmt: skip
def test_costs_are_measured_once_for_policies_that_need_them(
    measured: list[list[str]], values: dict[str, str], roles: list[list[str]]
) -> None:
    """For each number of threads."""
    for threads, times in ((1, 1), (1, 1), (None, 2)):
        options, shown = typed(**values, threads=threads), Shown()
        before = len(measured)
        asked = (ask_to_compare if "," in values.get("policy", "") else ask)(options, MATH)
        fetch_and_gather(asked, shown, lambda role: None)
        assert (measured, "measuring" in " ".join(shown.notes)) == (roles * times, len(measured) > before)


class Releasing(Shown):
    """Ends the process that holds the lock of measurements when the wait for it is shown."""

    def __init__(self, holder: Process, before: Callable[[], object]) -> None:
        super().__init__()
        self._holder, self._before = holder, before

    def tell(self, text: str) -> None:
        super().tell(text)
        if self._holder.poll() is None:
            self._before()
            self._holder.kill()


@contextmanager
def measuring_elsewhere() -> Iterator[Process]:
    """Another process that holds the lock of measurements until it is killed."""
    folder = tuned_file().parent
    folder.mkdir(parents=True, exist_ok=True)
    code = "import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX); print(flush=True); input()"
    with start(str(folder / "measuring.lock"), program=[sys.executable, "-c", code]) as holder:
        read_line(holder)
        yield holder
        holder.kill()


@pytest.mark.parametrize("is_stored", [True, False], ids=["it stores costs", "it dies"])
def test_costs_that_another_process_measures_are_awaited(measured: list[list[str]], *, is_stored: bool) -> None:
    def store() -> None:
        made = (make_tuned(machine_here(), sha256_of(find_files(FILES[role])), 1) for role in BOTH)
        keep_tuned(tuned_file(), [*made] if is_stored else [])

    with measuring_elsewhere() as holder:
        shown = Releasing(holder, store)
        request = ask(typed(**FILES, policy="speculative"), MATH)
        found = fetch_and_gather(request, shown, lambda role: None).unit_costs
    assert [*found] == BOTH
    assert measured == ([] if is_stored else [BOTH])
    assert [note for note in shown.notes if "another process" in note] == shown.notes[:1]


def test_costs_are_measured_beside_a_process_that_does_not_end(
    measured: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arbitrage_cli.app.deciding.prepare.MAX_WAIT_SECONDS", 0.01)
    with measuring_elsewhere():
        fetch_and_gather(ask(typed(**FILES, policy="speculative"), MATH), Shown(), lambda role: None)
    assert measured == [BOTH]


def test_ctrl_c_ends_the_wait_for_another_measurement(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(quick_path))
    with measuring_elsewhere(), start("solve", "5 + 6", "--policy", "speculative") as waiting:
        assert b"another process" in waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(TIMEOUT) == 130


def keep_disturbed(threads: int = 1) -> None:
    """Keep costs at which a target token costs 4 draft tokens."""
    for role, seconds in (("draft", 0.1), ("target", 0.4)):
        made = make_tuned(machine_here(), sha256_of(find_files(FILES[role])), threads, unit_costs(seconds))
        keep_tuned(tuned_file(), [replace(made, is_disturbed=True)])


@pytest.mark.parametrize("policy", ["speculative", "target"])
def test_disturbed_costs_are_measured_again_as_soon_as_the_processor_is_idle(
    measured: list[list[str]], monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """If the policy depends on them. The command says what has changed."""
    load = [0.3]
    monkeypatch.setattr("arbitrage_cli.app.deciding.prepare.other_cores", lambda seconds: load[0])
    keep_disturbed(threads=2)
    request = ask(typed(**FILES, policy=policy), MATH)
    uses_costs = policy == "speculative"

    def decided() -> tuple[Setup, list[str]]:
        shown = Shown()
        setup = decide(request, fetch_and_gather(request, shown, lambda role: None))
        return setup, [*shown.notes, *setup.notes]

    setup, notes = decided()
    assert measured == []
    assert [note for note in notes if "approximate" in note] == notes[: uses_costs and 1]
    assert all(model.costs_are_approximate for model in setup.models.values())
    load[0] = 0.1
    setup, notes = decided()
    assert measured == ([BOTH] if uses_costs else [])
    if uses_costs:
        assert "costs 1.00 draft tokens, not 4.00" in notes[1]
        assert "1 thread for the target instead of 2" in notes[1]
        assert not any(model.costs_are_approximate for model in setup.models.values())
        assert len(decided()[1]) < len(notes)
    assert len(measured) == uses_costs


def test_a_run_remembers_that_its_costs_were_disturbed(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run keeps its costs, even if good ones are known now."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(quick_path))
    monkeypatch.setattr("arbitrage_cli.app.deciding.prepare.other_cores", lambda seconds: 1.0)
    write_problems(quick_path / "problems.jsonl", ("5 + 6",))
    keep_disturbed()
    options = typed(**FILES, policy="target,draft", max_tokens=4)
    began = bench(quick_path, options).run
    keep_tuned(tuned_file(), [make_tuned(machine_here(), sha256_of(find_files(FILES[role])), 1) for role in BOTH])
    resumed = bench(quick_path, options)
    assert resumed.run.decided == began.decided
    assert [model.costs_are_approximate for model in began.decided.models.values()] == [True, True]
    notes = typed_figures(resumed.run.to_dict(), rows_of(resumed.folder.path)).notes
    assert len([note for note in notes if "disturbed" in note and "draft and target" in note]) == 1


def test_a_policy_that_needs_a_checker_measures_the_checker_alone(measured: list[list[str]]) -> None:
    def stored_after(policy: str) -> dict[str, Tuned]:
        fetch_and_gather(ask(typed(policy=policy), MATH), Shown(), lambda role: None)
        return {one.sha256: one for one in read_cache(tuned_file()).tuned}

    pair, three = stored_after("speculative"), stored_after("agree")
    assert measured == [BOTH, ["check"]]
    assert (len(three), {sha256: three[sha256] for sha256 in pair}) == (3, pair)


def test_a_finished_run_measures_nothing_and_a_model_that_joins_is_measured(
    measured: list[list[str]], quick_path: Path
) -> None:
    write_problems(quick_path / "problems.jsonl", ("5 + 6",))
    for policy, times in (("draft", 0), ("draft,target", 1), ("draft,target", 1)):
        run = bench(quick_path, Options(policy=policy, max_tokens=4, explicit=frozenset({"policy"}))).run
        assert len(measured) == times
        tuned_file().unlink(missing_ok=True)
    assert all(model.costs for model in run.decided.models.values())


def test_costs_that_are_asked_for_need_model_files_and_a_place(
    measured: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measure(**values: str) -> ByRole[Tuned]:
        return measure_costs(choose_models(typed(**values), MATH), Shown(), offline=True)

    alone = measure(target="builtin:target", kv_type="q8_0")
    assert [(role, one.loading.kv_type) for role, one in alone.items()] == [("target", "q8_0")]
    assert "scripted:draft" in refused(measure, **SCRIPTED).message
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    assert isinstance(refused(measure, target="builtin:target"), OutputError)
    assert measured == [["target"]]


def test_models_of_the_hub_are_treated_the_same_before_and_after_their_download(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have one folder for their advice, and the router that was trained on the downloaded files."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(quick_path))
    monkeypatch.chdir(quick_path)
    monkeypatch.setattr(BenchRun, "measure", lambda run, *given: run.folder.save_run(run.run))
    advice, routers = AdviceOptions(), list[str | None]()
    with fake_hub.running() as served:
        served.repos |= {HUB[role]: {"m-Q4_K_M.gguf": (models_folder() / f"{role}.gguf").read_bytes()} for role in BOTH}
        fake_hub.use(served, monkeypatch, quick_path)
        for _ in range(2):
            advise_pair(typed(**HUB), advice, Shown())
            (folder,) = Path("runs").iterdir()
            router = run_json(folder)["decided"]["router"]
            routers.append(router and router["name"])
    assert routers == ["builtin"] * 2


def test_models_that_are_too_large_are_refused_before_they_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arbitrage_cli.costs.memory.total_memory", lambda: 1)
    for module in ("app.opening.open_models", "costs.measure"):
        monkeypatch.setattr(f"arbitrage_cli.{module}.open_model", lambda *given: pytest.fail("the model was loaded"))
    options = typed(target="builtin:target", policy="target")
    measuring = refused(measure_costs, choose_models(options, MATH), Shown(), offline=True)
    for error in (refused(solve, tmp_path, options, "1 + 1"), measuring):
        assert re.search("need .* has ", error.message)
