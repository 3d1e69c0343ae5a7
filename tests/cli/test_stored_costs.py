"""Stored token costs, which `arbitrage doctor` lists."""

from importlib.metadata import version
from pathlib import Path

import pytest
from cli import Result, run
from made_up_tuning import keep_built_in, make_tuned

from arbitrage_cli.costs.store import keep_tuned, read_cache, tuned_file
from arbitrage_cli.inference.llama import backend


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Costs of the built-in models and of another one."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    keep_built_in()
    keep_tuned(tuned_file(), [make_tuned(sha256="a" * 64)])
    return tmp_path


def run_in(home: Path, *arguments: str) -> Result:
    return run(*arguments, cwd=home, env={"XDG_CONFIG_HOME": str(home)})


def facts_of(result: Result, name: str) -> list[str]:
    return [line.removeprefix(name).strip() for line in result.out.splitlines() if line.startswith(name)]


def test_doctor_lists_versions_and_what_is_stored(home: Path) -> None:
    shown = run_in(home, "doctor")
    assert shown.code == 0, shown.err
    for package in ("numpy", "httpx2", "pydantic", "llama-cpp-python", "scikit-learn"):
        assert facts_of(shown, f"{package} ")[0].startswith(version(package))
    assert len(facts_of(shown, "built for")) == 1
    assert len(facts_of(shown, "token costs")) == len(read_cache(tuned_file()).tuned)
    (home / "arbitrage" / "tuned.json").write_text("{")
    assert "tuned.json is ignored" in facts_of(run_in(home, "doctor"), "note")[0]


def test_instructions_that_the_build_does_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "processor_features", lambda: frozenset({"avx2", "avx512f", "sse3"}))
    monkeypatch.setattr(backend, "system_info", lambda: "CPU : SSE3 = 1 | AVX2 = 1 | ")
    assert backend.unused_instructions() == ["AVX512"]
