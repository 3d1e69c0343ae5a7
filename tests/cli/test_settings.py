"""What holds where flags, environment and settings files do not agree, and whom an error blames."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cli import MODELS, run
from faults import write_problems

SOLVE = ("solve", "5 + 6", "--json", "-q", "--max-tokens", "1")
BENCH = ("bench", "--dataset", "one.jsonl", "-o", "run", "-q", "--max-tokens", "1")


def solve(folder: Path, *flags: str, settings: str = "", env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The record of a problem that the built-in pair solves in that folder, with these settings."""
    (folder / "arbitrage.toml").write_text(settings)
    result = run(*SOLVE, *flags, cwd=folder, env=env)
    assert result.code == 0, result.err
    record: dict[str, Any] = result.records[0]
    return record


def columns(folder: Path, *flags: str, settings: str) -> dict[str, Any]:
    """The policies of a benchmark of one problem with these settings, and the tau of each."""
    (folder / "arbitrage.toml").write_text(settings)
    write_problems(folder / "one.jsonl", ["5 + 6"])
    result = bench(folder, *flags)
    assert result.code == 0, result.err
    made = json.loads((folder / "run" / "run.json").read_text())["policies"]
    return {one["policy"]: one["tau"] for one in made}


# --- one wish against another


@pytest.fixture(scope="module")
def at_budget(tmp_path_factory: pytest.TempPathFactory) -> float:
    """The tau of a budget of 0.2."""
    tau: float = solve(tmp_path_factory.mktemp("budget"), "--budget", "0.2")["tau"]
    return tau


def test_a_flag_wins_over_a_setting_that_conflicts_with_it(tmp_path: Path, at_budget: float) -> None:
    assert solve(tmp_path, "--budget", "0.2", env={"ARBITRAGE_TAU": "fast"})["tau"] == at_budget
    assert solve(tmp_path, "--budget", "0.2", settings='tau = "fast"\n')["tau"] == at_budget
    assert solve(tmp_path, "--tau", "0.4", settings="budget = 0.2\n")["tau"] == 0.4


def test_the_environment_wins_over_a_file_that_conflicts_with_it(tmp_path: Path, at_budget: float) -> None:
    budget = {"ARBITRAGE_BUDGET": "0.2"}
    assert solve(tmp_path, settings='tau = "fast"\n', env=budget)["tau"] == at_budget
    (tmp_path / "arbitrage").mkdir()
    (tmp_path / "arbitrage" / "config.toml").write_text('tau = "fast"\n')
    assert solve(tmp_path, settings="budget = 0.2\n", env={"XDG_CONFIG_HOME": str(tmp_path)})["tau"] == at_budget


@pytest.mark.parametrize(
    ("settings", "flags", "policy"),
    [
        ('tau = "fast"\n', ["--policy", "entropy"], ("entropy", 1.0)),
        ("tau = 0.4\n", ["--policy", "entropy"], ("entropy", 0.4)),
        ("budget = 0.2\n", ["--policy", "entropy"], ("entropy", 1.0)),
        ('policy = "entropy"\n', ["--tau", "fast"], ("arbitrage", 0.347)),
        ('policy = "target"\n', ["--tau", "0.4"], ("arbitrage", 0.4)),
    ],
)
def test_a_setting_that_does_not_go_with_a_flag_is_left_out(
    tmp_path: Path, settings: str, flags: list[str], policy: tuple[str, float]
) -> None:
    record = solve(tmp_path, *flags, settings=settings)
    assert (record["policy"], record["tau"]) == (policy[0], pytest.approx(policy[1], abs=1e-3))


def test_explain_follows_the_flag_too(tmp_path: Path, at_budget: float) -> None:
    (tmp_path / "arbitrage.toml").write_text('tau = "fast"\n')
    flags = ("--budget", "0.2", "--json", "-q", "--max-tokens", "1")
    result = run("explain", "5 + 6", *flags, cwd=tmp_path)
    assert result.code == 0, result.err
    assert result.records[0]["tau"] == at_budget


def test_flags_that_conflict_are_refused() -> None:
    for flags, words in [
        (["--tau", "fast", "--budget", "0.2"], "both a tau and a budget are given"),
        (["--policy", "entropy", "--tau", "fast"], "'fast' for policy entropy"),
        (["--policy", "entropy", "--budget", "0.2"], "policy entropy has no budget"),
    ]:
        result = run(*SOLVE, *flags)
        assert result.code == 2
        assert words in result.err


@pytest.mark.parametrize(
    ("settings", "flags", "taus"),
    [
        ("tau = 0.4\n", ["--policy", "arbitrage,entropy,target"], {"arbitrage": 0.4, "entropy": 1.0, "target": None}),
        ('tau = 0.4\npolicy = "entropy"\n', ["--policy", "arbitrage,entropy"], {"arbitrage": 0.0214, "entropy": 0.4}),
        ('tau = "fast"\npolicy = "arbitrage,entropy"\n', [], {"arbitrage": 0.347, "entropy": 1.0}),
        ('policy = "arbitrage,entropy"\n', ["--tau", "fast"], {"arbitrage": 0.347, "entropy": 1.0}),
        ("tau = 0.4\n", ["--policy", "arbitrage@0.3,logprob@2"], {"arbitrage": 0.3, "logprob": 2.0}),
        ("tau = 0.4\n", ["--tau", "0.3", "--policy", "arbitrage,entropy"], {"arbitrage": 0.3, "entropy": 0.3}),
    ],
)
def test_a_tau_that_is_a_setting_holds_for_the_policies_that_are_one(
    quick_path: Path, settings: str, flags: list[str], taus: dict[str, Any]
) -> None:
    found = columns(program, quick_path, *flags, settings=settings)
    assert found == {name: tau if tau is None else pytest.approx(tau, abs=1e-3) for name, tau in taus.items()}


# --- whom an error blames


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ('max-tokens = "many"\n', "max-tokens: Input should be a valid integer"),
        ("threads = 0\n", "threads: Input should be greater than or equal to 1"),
        ('kv-type = "q9"\n', "'q9' is not one of 'auto'"),
        ("policy = 3\n", "unknown policy '3'"),
        ('tau = "high"\n', "'high' for policy entropy"),
        ('chat-template-kwargs = "x"\n', "not a JSON object"),
        ('[solve]\nmax-tokens = "many"\n', "max-tokens: Input should be a valid integer"),
        ('[solve]\noutput = "x"\n', "[solve] unknown setting 'output'"),
        ("solve = 1\n", "unknown setting 'solve'"),
    ],
)
def test_an_error_in_a_settings_file_names_the_file(tmp_path: Path, settings: str, words: str) -> None:
    (tmp_path / "arbitrage.toml").write_text(settings)
    result = run("solve", *MODELS, "5 + 6", cwd=tmp_path)
    assert (result.code, result.stdout) == (2, b"")
    assert result.err.startswith("arbitrage: arbitrage.toml: ")
    assert words in result.err


def test_an_error_in_the_users_own_file_names_that(quick_path: Path) -> None:
    write_problems(quick_path / "one.jsonl", ["5 + 6"])
    (quick_path / "arbitrage").mkdir()
    own = quick_path / "arbitrage" / "config.toml"
    home = {"XDG_CONFIG_HOME": str(quick_path)}
    for setting, words in [
        ('policy = "target,best"', "unknown policy 'best'"),
        ("limit = 0", "invalid limit '0'"),
        ('limit = 2\nids = "q"', "no problem has the id 'q'"),
    ]:
        own.write_text(f"{setting}\n")
        result = bench(quick_path, "--pair", "scripted", env=home)
        assert result.code == 2
        assert result.err.startswith(f"arbitrage: {own}: ")
        assert words in result.err


def test_an_error_in_the_environment_names_the_variable_and_that_of_a_flag_neither(tmp_path: Path) -> None:
    solving = ("solve", *MODELS, "5 + 6")
    assert "arbitrage: ARBITRAGE_POLICY: unknown policy 'best'" in run(*solving, env={"ARBITRAGE_POLICY": "best"}).err
    (tmp_path / "arbitrage.toml").write_text('policy = "best"\nconcurrency = "better"\n')
    assert run(*solving, "--policy", "better", cwd=tmp_path).err.startswith("arbitrage: --policy: unknown policy 'better'")


# --- a command's own table


def test_a_table_that_is_called_as_a_command_holds_for_it_alone(quick_path: Path) -> None:
    settings = 'pair = "scripted"\npolicy = "logprob"\n[bench]\npolicy = "target,draft"\noutput = "mine"\n'
    (quick_path / "arbitrage.toml").write_text(settings)
    write_problems(quick_path / "one.jsonl", ["5 + 6"])
    assert run("bench", "--dataset", "one.jsonl", "-q", cwd=quick_path).code == 0
    made = json.loads((quick_path / "mine" / "run.json").read_text())["policies"]
    assert [one["policy"] for one in made] == ["target", "draft"]
    solved = run("solve", "5 + 6", "--json", "-q", cwd=quick_path)
    assert solved.records[0]["policy"] == "logprob"


def test_the_nearer_file_wins_over_a_table_of_the_other(tmp_path: Path) -> None:
    (tmp_path / "arbitrage").mkdir()
    (tmp_path / "arbitrage" / "config.toml").write_text("[solve]\nseed = 1\nmax-steps = 1\n")
    (tmp_path / "arbitrage.toml").write_text("seed = 2\n")
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    (record,) = run("solve", *MODELS, "37 * 12 - 95", "--json", "-q", cwd=tmp_path, env=env).records
    assert (record["seed"], record["stop"]) == (2, "max_steps")
