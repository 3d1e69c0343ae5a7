"""The settings file: what holds if flags, environment and file disagree, and which place an error names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cli import MODELS, assert_refused, run, served
from faults import run_json, write_problems

SOLVE = ("solve", "5 + 6", "--json", "-q", "--max-tokens", "1")
BENCH = ("bench", "--dataset", "one.jsonl", "-o", "run", "-q", "--max-tokens", "1")


def write_settings(folder: Path, settings: str) -> dict[str, str | None]:
    """The user's own file; returns the environment that finds it."""
    (folder / "arbitrage").mkdir(exist_ok=True)
    (folder / "arbitrage" / "config.toml").write_text(settings)
    return {"XDG_CONFIG_HOME": str(folder)}


def solve(folder: Path, *flags: str, settings: str = "", env: Mapping[str, str | None] | None = None) -> dict[str, Any]:
    return run(*SOLVE, *flags, cwd=folder, env={**write_settings(folder, settings), **(env or {})}).record


def test_flag_wins_over_environment_over_file(tmp_path: Path) -> None:
    settings = "seed = 2\ntemperature = 0.5\n"
    environment: dict[str, str | None] = {"ARBITRAGE_SEED": "3"}
    for flags, env, seed in ([], None, 2), ([], environment, 3), (["--seed", "4"], environment, 4):
        record = solve(tmp_path, *flags, settings=settings, env=env)
        assert (record["settings"]["seed"], record["settings"]["temperature"]) == (seed, 0.5)


def test_another_file_replaces_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("seed = 5\n")
    own = "seed = 2\ntemperature = 0.5\n"
    for flags, env in (["--config", "other.toml"], {}), ([], {"ARBITRAGE_CONFIG": "other.toml"}):
        settings = solve(tmp_path, *flags, settings=own, env=env)["settings"]
        assert (settings["seed"], settings["temperature"]) == (5, 0.0)
    assert_refused(run(*SOLVE, "--config", "none.toml", cwd=tmp_path), 2, "none.toml: ")


def test_unknown_variable_is_reported_with_the_most_similar_one(tmp_path: Path) -> None:
    misspelt = {"ARBITRAGE_TARGT": "a.gguf", "ARBITRAGE_TARGT_API_KEY": "secret", "ARBITRAGE_": "1", "ARBITRAGE_ZZZ": "1"}
    result = run(*SOLVE, cwd=tmp_path, env=misspelt)
    assert result.code == 0
    lines = [[word.strip(";?") for word in line.split() if "ARBITRAGE" in word] for line in result.err.splitlines()]
    assert lines == [
        ["ARBITRAGE_"],
        ["ARBITRAGE_TARGT", "ARBITRAGE_TARGET"],
        ["ARBITRAGE_TARGT_API_KEY", "ARBITRAGE_TARGET_API_KEY"],
        ["ARBITRAGE_ZZZ"],
    ]
    assert "secret" not in result.err


def test_known_variables_are_not_reported(tmp_path: Path) -> None:
    """Those of options, keys, a pair's key, and the project's own tests."""
    keys = ("API_KEY", "DRAFT_API_KEY", "TARGET_API_KEY", "CHECK_API_KEY", "PRM_API_KEY", "SERVE_API_KEY", "MY_KEY")
    others = {"ARBITRAGE_SEED": "3", "ARBITRAGE_DEBUG": "0", "ARBITRAGE_TEST_DRAFT": "a", "ARBITRAGE_FUZZ": "1"}
    (tmp_path / "arbitrage").mkdir()
    entry = f"[mine]\ndraft.source = {MODELS[1]!r}\ntarget.source = {MODELS[3]!r}\n"
    (tmp_path / "arbitrage" / "pairs.toml").write_text(f'{entry}target.api_key_env = "ARBITRAGE_MY_KEY"\n')
    env = {**write_settings(tmp_path, ""), **others, **{f"ARBITRAGE_{name}": "k" for name in keys}}
    result = run(*SOLVE, cwd=tmp_path, env=env)
    assert (result.code, result.err) == (0, "")


def test_folder_of_the_command_sets_nothing(quick_path: Path) -> None:
    """A cloned repository must not choose models, run programs, open ports or select folders to write to."""
    write_problems(quick_path / "one.jsonl", ["5 + 6"])
    settings = 'draft = "http://127.0.0.1:1/v1"\ntarget = "http://127.0.0.1:1/v1"\nhost = "0.0.0.0"\nno-api-key = true\n'
    (quick_path / "arbitrage.toml").write_text(f'{settings}run-code = "unprotected"\n[bench]\noutput = "elsewhere"\n')
    alone = ("--policy", "draft")
    assert run("solve", *alone, "5 + 6", "-q", cwd=quick_path, env={"ARBITRAGE_API_KEY": "secret"}).code == 0
    assert run("bench", *alone, "--dataset", "one.jsonl", "-q", cwd=quick_path).code == 0
    assert not (quick_path / "elsewhere").exists()
    with served(cwd=quick_path) as (_, client):
        assert client.base_url.host == "127.0.0.1"


@pytest.mark.parametrize("name", ["max-tokens", "max_tokens"])
@pytest.mark.parametrize("table", ["", "[solve]\n"], ids=["top level", "table"])
def test_setting_is_spelt_with_dashes_or_underscores(tmp_path: Path, table: str, name: str) -> None:
    env = write_settings(tmp_path, f"{table}{name} = 2\n")
    record = run("solve", *MODELS, "5 + 6", "--json", "-q", cwd=tmp_path, env=env).record
    assert (record["stop"], record["steps"][0]["tokens"]) == ("max_tokens", 2)


def test_settings_for_other_commands_do_not_select_problems(tmp_path: Path) -> None:
    env = write_settings(tmp_path, 'limit = "1"\n')
    arguments = ("solve", *MODELS, "--policy", "target", "-q", "--json")
    assert run(*arguments, "5 + 6", cwd=tmp_path, env=env).code == 0
    assert len(run(*arguments, stdin=b"5 + 6\n5 + 7\n", cwd=tmp_path, env=env).records) == 2


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["solve", "-h"], ["doctor"], ["guide", "settings"]])
def test_help_works_with_a_broken_settings_file(tmp_path: Path, arguments: list[str]) -> None:
    for settings in ("foo = 1\n", "nonsense = ["):
        assert run(*arguments, env=write_settings(tmp_path, settings)).code == 0


@pytest.mark.parametrize(
    ("settings", "place", "word"),
    [
        ("taus = 1\n", "", "did you mean 'tau'"),
        pytest.param(f"map{5000 * '.a'} = 1\n", "map: ", "a table", id="nested deeply"),
        ("tau = [1]\n", "tau: ", "a list"),
        ("system = { a = 1 }\n", "system: ", "a table"),
        ('map = { question = "q" }\n', "map: ", "a table"),
        ("[solve]\nsystem = 2026-12-02\n", "[solve] system: ", "a date"),
        ('[bench.system]\na = "b"\n', "[bench] system: ", "a table"),
        ('max-tokens = "many"\n', "max-tokens: ", "whole number"),
        ("threads = 0\n", "threads: ", "1"),
        ('kv-type = "q9"\n', "kv-type: ", "q9"),
        ('[solve]\nmax-tokens = "many"\n', "max-tokens: ", "whole number"),
        ('[solve]\noutput = "x"\n', "[solve] ", "output"),
        ("tau = fast\n", "", 'tau = "fast"'),
        ("solve = 1\n", "", "solve"),
    ],
)
def test_error_in_a_settings_file_names_the_file_and_the_setting(
    tmp_path: Path, settings: str, place: str, word: str
) -> None:
    result = run("solve", *MODELS, "5 + 6", env=write_settings(tmp_path, settings))
    assert_refused(result, 2, f"{tmp_path / 'arbitrage' / 'config.toml'}: {place}", word)


@pytest.mark.parametrize(
    ("place", "flags", "env"),
    [
        ("{folder}/arbitrage/config.toml: limit: ", (), {}),
        ("ARBITRAGE_LIMIT: ", (), {"ARBITRAGE_LIMIT": "0"}),
        ("ARBITRAGE_MAX_STEPS: ", (), {"ARBITRAGE_MAX_STEPS": "high"}),
        ("--limit: ", ("--limit", "0"), {"ARBITRAGE_LIMIT": "1"}),
    ],
)
def test_error_about_an_option_names_the_place_that_set_it(
    quick_path: Path, place: str, flags: tuple[str, ...], env: dict[str, str]
) -> None:
    write_problems(quick_path / "one.jsonl", ["5 + 6"])
    settings = write_settings(quick_path, 'limit = "0"')
    result = run(*BENCH, *MODELS, *flags, cwd=quick_path, env=settings | env)
    assert_refused(result, 2, place.format(folder=quick_path))


def test_table_of_a_command_wins_over_the_top_level_for_it_alone(quick_path: Path) -> None:
    settings = 'pair = "scripted"\npolicy = "logprob"\n[bench]\npolicy = "target,draft"\noutput = "mine"\n'
    (quick_path / "own.toml").write_text(settings)
    write_problems(quick_path / "one.jsonl", ["5 + 6"])
    chosen = ("-q", "--config", "own.toml")
    assert run("bench", "--dataset", "one.jsonl", *chosen, cwd=quick_path).code == 0
    made = run_json(quick_path / "mine")["decided"]["routes"]
    assert [one["policy"] for one in made] == ["target", "draft"]
    assert run("solve", "5 + 6", "--json", *chosen, cwd=quick_path).record["policy"] == "logprob"
