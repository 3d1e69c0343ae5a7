"""`advise --costs`, and how the other commands use the measured costs and threads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cli import MODELS, Result, assert_refused, flat, run
from faults import run_json
from made_up_tuning import FAST_READER, make_tuned

from arbitrage_cli.costs.store import keep_tuned, machine_here, read_cache
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.model_files.checksums import sha256_of
from arbitrage_cli.model_files.pairs import find_files


class Home:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "arbitrage" / "tuned.json"

    def run(self, *arguments: str, env: Mapping[str, str] | None = None, **order: Any) -> Result:
        # Threads that wait give up their cores: other tests need them. What is written does not matter here.
        own = {"XDG_CONFIG_HOME": str(self.folder), "OMP_WAIT_POLICY": "passive", "ARBITRAGE_MAX_TOKENS": "4"}
        return run(*arguments, cwd=self.folder, env={**own, **(env or {})}, **order)

    def pretend(self, costs: Mapping[str, UnitCosts]) -> None:
        """Store costs of the draft and the target; the checker has those of the draft. More threads would wait for each other."""
        roles = {"draft": "draft", "target": "target", "thinking-draft": "draft"}
        shas = {name: sha256_of(find_files(f"builtin:{name}")) for name in roles}
        keep_tuned(self.file, [make_tuned(machine_here(), shas[name], 1, costs[role]) for name, role in roles.items()])


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "arithmetic.jsonl").write_text(json.dumps({"question": "5 + 6", "answer": "11"}) + "\n")
    return Home(tmp_path)


@pytest.fixture
def nowhere(tmp_path: Path) -> dict[str, str]:
    """An environment in which settings cannot be stored."""
    (tmp_path / "file").touch()
    return {"XDG_CONFIG_HOME": str(tmp_path / "file")}


def test_costs_are_shown_and_kept_by_sha256_and_machine(home: Home) -> None:
    *_, ratio, saved = home.run("advise", "--costs").out.splitlines()
    assert saved == f"kept in {home.file}"
    kept = [*read_cache(home.file).tuned]
    low, high = (float(end) for end in ratio.split()[-1].strip("[]").split("-"))
    assert 0.99 * low <= kept[1].costs.decode / kept[0].costs.decode <= 1.01 * high
    assert [one.sha256 for one in kept] == [sha256_of(find_files(f"builtin:{role}")) for role in FAST_READER]
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
    assert [*record] == ["target"]
    assert record["target"]["costs"]["batches"][0] > 0
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
