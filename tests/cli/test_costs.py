"""`advise --costs`, and how the other commands use the measured costs and threads."""

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli import MODELS, Result, assert_refused, flat, run
from faults import run_json
from made_up_tuning import make_tuned, unit_costs
from small_routers import write_router

from arbitrage_cli.app.decide import decide
from arbitrage_cli.app.gather import gather
from arbitrage_cli.app.options import Options
from arbitrage_cli.app.request import WRITING, ask
from arbitrage_cli.costs.store import Tuned, keep_tuned, machine_here, read_cache, threads_without_costs
from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.model_files.checksums import sha256_of
from arbitrage_cli.model_files.pairs import find_files
from arbitrage_cli.problems.tasks import MATH
from arbitrage_cli.runs.run import Setup
from arbitrage_cli.system.machine import CACHED_BYTES

FAST_READER = {"draft": unit_costs(0.1, prefill=0.01), "target": unit_costs(1.0, prefill=0.01)}
SLOW_VERIFIER = {"draft": unit_costs(0.1, prefill=0.01), "target": unit_costs(1.0, 8.0, 32.0, prefill=0.01)}
NO_GAIN = {"draft": unit_costs(1.5, prefill=0.01), "target": unit_costs(1.0, 2.0, 8.0, prefill=0.5)}  # a slow draft
ALONE = {"draft": 1, "target": 1}  # threads that wait for each other take long on a busy machine
THREADS = {"draft": 1, "target": 2}


class Home:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "arbitrage" / "tuned.json"

    def run(self, *arguments: str, env: Mapping[str, str] | None = None, **order: Any) -> Result:
        # Threads that wait give up their cores: other tests need them. What is written does not matter here.
        own = {"XDG_CONFIG_HOME": str(self.folder), "OMP_WAIT_POLICY": "passive", "ARBITRAGE_MAX_TOKENS": "4"}
        return run(*arguments, cwd=self.folder, env={**own, **(env or {})}, **order)

    def pretend(self, costs: Mapping[str, UnitCosts], threads: Mapping[str, int] = ALONE) -> None:
        """Store costs of the draft and the target; the checker has those of the draft."""
        roles = {"draft": "draft", "target": "target", "thinking-draft": "draft"}
        keep_tuned(self.file, [made_up(name, costs[role], threads[role]) for name, role in roles.items()])


def made_up(name: str, costs: UnitCosts, threads: int) -> Tuned:
    return make_tuned(machine_here(), sha256_of(find_files(f"builtin:{name}")), threads, costs)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "arithmetic.jsonl").write_text(json.dumps({"question": "5 + 6", "answer": "11"}) + "\n")
    return Home(tmp_path)


@pytest.fixture
def nowhere(tmp_path: Path) -> dict[str, str]:
    """An environment in which settings cannot be stored."""
    (tmp_path / "file").touch()
    return {"XDG_CONFIG_HOME": str(tmp_path / "file")}


def decided(home: Home, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Setup:
    """What is decided for one problem with these options and the stored costs."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home.folder))
    request = ask(Options(explicit=frozenset(options), **options), MATH)
    return decide(request, gather(request))


def threads_of(setup: Setup) -> list[int | None]:
    return [setup.models[role].threads for role in WRITING]


def test_costs_are_shown_and_kept_by_sha256_and_machine(home: Home) -> None:
    *_, ratio, saved = home.run("advise", "--costs").out.splitlines()
    assert saved == f"kept in {home.file}"
    kept = [*read_cache(home.file).tuned]
    low, high = (float(end) for end in ratio.split()[-1].strip("[]").split("-"))
    assert 0.99 * low <= kept[1].costs.decode / kept[0].costs.decode <= 1.01 * high
    assert [one.sha256 for one in kept] == [sha256_of(find_files(f"builtin:{role}")) for role in ALONE]
    assert {one.machine for one in kept} == {machine_here()}
    assert all(0 < one.costs.prefill_token < one.costs.decode for one in kept)


def test_costs_are_measured_for_any_number_of_threads_and_before_the_first_problem(home: Home) -> None:
    first = home.run("solve", "5 + 6", "--json", "--threads", "1")
    assert "measuring the token costs" in flat(first.err)
    again = home.run("solve", "5 + 6", "--json", "--threads", "1")
    assert "measuring the token costs" not in flat(again.err)
    assert home.run("solve", "5 + 6", "--json", "-q").code == 0
    assert {(one.threads, one.loading.threads) for one in read_cache(home.file).tuned} == {(1, 1), (1, None)}


def test_a_finished_run_measures_nothing(home: Home) -> None:
    home.pretend(FAST_READER)
    bench = ("bench", "--dataset", "arithmetic.jsonl", "--policy", "target,draft", "-o", "run")
    collect = ("collect", "--dataset", "arithmetic.jsonl", "-o", "states")
    assert [home.run(*command).code for command in (bench, collect)] == [0, 0]
    home.file.unlink()
    assert [home.run(*command).code for command in (bench, collect)] == [0, 0]
    assert [*read_cache(home.file).tuned] == []


def test_costs_of_a_model_that_joins_a_run_are_measured(home: Home) -> None:
    assert home.run("bench", "--dataset", "arithmetic.jsonl", "--policy", "draft", "-o", "run").code == 0
    assert run_json(home.folder / "run")["decided"]["models"]["draft"]["costs"] is None
    assert home.run("bench", "--dataset", "arithmetic.jsonl", "--policy", "draft,target", "-o", "run").code == 0
    assert run_json(home.folder / "run")["decided"]["models"]["target"]["costs"]["batches"][0] > 0


def test_costs_that_cannot_be_stored_are_used_by_the_command(home: Home, nowhere: dict[str, str]) -> None:
    result = home.run(*BENCH[:-1], "--policy", "target,speculative", env=nowhere)
    assert (result.code, "cannot be stored" in flat(result.err)) == (0, True)
    assert all(one["costs"] for one in run_json(home.folder / "run")["decided"]["models"].values())


def test_costs_are_measured_only_for_a_policy_that_needs_them(home: Home) -> None:
    for policy in ("target", "draft"):
        assert "measuring" not in home.run("solve", "5 + 6", "--policy", policy).err
    assert home.run("bench", "--dataset", "arithmetic.jsonl", "--policy", "target", "-o", "run").code == 0
    assert not home.file.exists()


def test_one_model_is_measured_alone_as_json(home: Home) -> None:
    result = home.run(*ONE, "--json", "-q", env=Q8)
    assert (result.code, result.err) == (0, "")
    record = result.record
    assert [*record] == ["target", "token_ratio", "token_ratio_interval"]
    assert record["target"]["costs"]["batches"][0] > 0
    assert record["token_ratio"] is None
    assert [one.loading.kv_type for one in read_cache(home.file).tuned] == ["q8_0"]


def test_demo_models_are_refused(home: Home) -> None:
    assert_refused(home.run("advise", "--costs", *MODELS), 2, "", "scripted:draft")
    assert home.run("solve", "5 + 6", *MODELS, without=["llama_cpp"]).code == 0
    assert not home.file.exists()


ONE = ("advise", "--costs", "--target", "builtin:target", "--ctx", "128")
Q8: Mapping[str, str] = {"ARBITRAGE_KV_TYPE": "q8_0"}


def test_unwritable_place_is_refused_before_measuring(home: Home, nowhere: dict[str, str]) -> None:
    result = home.run(*ONE, env=nowhere)
    assert_refused(result, 1, "", "tuned.json")
    assert "checking" not in result.err


BENCH = ("bench", "--dataset", "arithmetic.jsonl", "-o", "run", "-q")


def test_each_model_runs_with_its_measured_threads_unless_an_option_says_otherwise(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measurements hold for one type of the KV cache and one GPU."""
    routed = functools.partial(decided, home, monkeypatch, policy="arbitrage")
    default = threads_of(routed())
    home.pretend(FAST_READER, THREADS)
    found = [threads_of(routed(**options)) for options in ({}, {"threads": 2}, {"kv_type": "q8_0"})]
    assert found == [[1, 2], [2, 2], default]
    kept = [*read_cache(home.file).tuned]
    home.file.unlink()
    keep_tuned(home.file, [replace(one, machine=replace(one.machine, gpu="NVIDIA H100")) for one in kept])
    assert threads_of(routed()) == default


def test_named_taus_are_resolved_at_the_costs_of_this_machine(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the costs on the router's card, `careful` is 0.3."""
    router = str(write_router(home.folder / "small.safetensors"))
    for costs, tau in ((FAST_READER, 0.3), (SLOW_VERIFIER, 0.6)):
        home.pretend(costs)
        for options in ({}, {"tau": "careful"}):
            made = decided(home, monkeypatch, router=router, **options)
            assert (made.route.tau, made.tau_costs) == (tau, "this machine")


@pytest.mark.parametrize("asked", [{}, {"policy": "arbitrage"}, {"tau": "fast"}, {"early_stop": True}], ids=str)
def test_target_writes_alone_if_routing_gains_nothing_and_no_option_asks_for_it(
    home: Home, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    home.pretend(FAST_READER)
    assert decided(home, monkeypatch).route.policy.name == "arbitrage"
    home.pretend(NO_GAIN)
    made = decided(home, monkeypatch, **asked)
    assert made.route.policy.name == ("arbitrage" if asked else "target")
    assert any("uses the target alone" in note for note in made.notes) == (not asked)


def test_drafts_are_stopped_early_if_that_takes_less_time(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for costs, asked, stops in ((FAST_READER, None, False), (NO_GAIN, None, True), (NO_GAIN, False, False)):
        home.pretend(costs)
        made = decided(home, monkeypatch, policy="arbitrage", tau="0.02", early_stop=asked)
        assert made.route.stops_early is stops


def test_unmeasured_model_has_one_thread_if_it_fits_in_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("arbitrage_cli.costs.store.default_threads", lambda: 8)
    large = tmp_path / "large.gguf"
    with large.open("wb") as file:
        file.truncate(CACHED_BYTES + 1)
    assert [threads_without_costs(one, LoadOptions()) for one in ("builtin:draft", str(large))] == [1, 8]
    assert threads_without_costs("builtin:draft", LoadOptions(threads=2)) == 2
