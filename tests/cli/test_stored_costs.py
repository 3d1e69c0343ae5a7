"""Stored token costs and advice: `arbitrage doctor` lists them, and `arbitrage models forget` removes them."""

from importlib.metadata import version
from pathlib import Path

import pytest
from cli import Result, assert_refused, run
from commands import advised
from made_up_tuning import keep_built_in, make_tuned

from arbitrage_cli.app.options import Options
from arbitrage_cli.app.request import ask
from arbitrage_cli.costs.store import StoredAdvice, keep_advice, keep_tuned, read_cache, tuned_file
from arbitrage_cli.inference.llama import backend
from arbitrage_cli.problems.tasks import MATH

CREATED = "2026-11-29T12:00:00+00:00"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Costs of the built-in models and of another one, and advice on the built-in pair and on one with a server."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    keep_built_in()
    keep_tuned(tuned_file(), [make_tuned(sha256="a" * 64)])
    served = Options(draft="builtin:draft", target="http://127.0.0.1:9/v1#large")
    for options, route in ((Options(), "arbitrage@careful"), (served, "draft")):
        keep_advice(tuned_file(), StoredAdvice(advised(ask(options, MATH)), route, CREATED))
    return tmp_path


def run_in(home: Path, *arguments: str) -> Result:
    return run(*arguments, cwd=home, env={"XDG_CONFIG_HOME": str(home)})


def facts_of(result: Result, name: str) -> list[str]:
    return [line.removeprefix(name).strip() for line in result.out.splitlines() if line.startswith(name)]


def test_a_chat_follows_its_advice_whatever_the_concurrency_of_other_commands_is(home: Path) -> None:
    keep_advice(tuned_file(), StoredAdvice(advised(ask(Options(), MATH)), "speculative", CREATED))
    (home / "arbitrage" / "config.toml").write_text("concurrency = 8\n")
    env = {"XDG_CONFIG_HOME": str(home), "ARBITRAGE_CONCURRENCY": "8"}
    chat = run("chat", stdin=b"5 + 6\n", cwd=home, env=env)
    assert ("; speculative" in chat.err, chat.out.split()) == (True, ["11"])
    solved = run("solve", stdin=b"5 + 6\n2 + 3\n", cwd=home, env=env)
    assert {record["policy"] for record in solved.records} == {"arbitrage"}


def test_doctor_lists_versions_and_what_is_stored(home: Path) -> None:
    shown = run_in(home, "doctor")
    assert shown.code == 0, shown.err
    for package in ("numpy", "httpx2", "pydantic", "llama-cpp-python", "scikit-learn"):
        assert facts_of(shown, f"{package} ")[0].startswith(version(package))
    assert len(facts_of(shown, "built for")) == 1
    assert len(facts_of(shown, "token costs")) == len(read_cache(tuned_file()).tuned)
    first, second = facts_of(shown, "advice")
    assert all(word in first for word in ("task math", "arbitrage@careful", CREATED[:10]))
    assert all(word in second for word in ("http://127.0.0.1:9/v1#large", "draft"))
    (home / "arbitrage" / "tuned.json").write_text("{")
    assert "tuned.json is ignored" in facts_of(run_in(home, "doctor"), "note")[0]


def test_instructions_that_the_build_does_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "processor_features", lambda: frozenset({"avx2", "avx512f", "sse3"}))
    monkeypatch.setattr(backend, "system_info", lambda: "CPU : SSE3 = 1 | AVX2 = 1 | ")
    assert backend.unused_instructions() == ["AVX512"]


def test_pair_is_forgotten(home: Path) -> None:
    before = read_cache(tuned_file())
    gone = run_in(home, "models", "forget", "builtin")
    assert (gone.code, len(gone.out.splitlines())) == (0, len(before.tuned) - 1 + 1)
    left = read_cache(tuned_file())
    assert [one.sha256 for one in left.tuned] == ["a" * 64]
    assert [one.route for one in left.advice] == ["draft"]
    again = run_in(home, "models", "forget", "builtin")
    assert (again.code, again.out, bool(again.err)) == (0, "", True)
    assert read_cache(tuned_file()) == left


def test_models_of_a_pair_without_a_name_are_forgotten(home: Path) -> None:
    assert run_in(home, "models", "forget", "http://127.0.0.1:9/v1#large").code == 0
    assert len(read_cache(tuned_file()).advice) == 2  # the draft was not named
    assert run_in(home, "models", "forget", "http://127.0.0.1:9/v1#large", "builtin:draft").code == 0
    assert [one.route for one in read_cache(tuned_file()).advice] == ["arbitrage@careful"]


def test_unknown_name_changes_nothing(home: Path) -> None:
    before = read_cache(tuned_file())
    assert_refused(run_in(home, "models", "forget", "builtin", "nothing.gguf"), 2, "'nothing.gguf' ")
    assert read_cache(tuned_file()) == before
