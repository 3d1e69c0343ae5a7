"""The wording of typical errors, whole lines: the only test of prose."""

from pathlib import Path

import pytest
from cli import MODELS, run
from faults import write_problems

SOLVE = ("solve", "1 + 1", *MODELS)
BENCH = ("bench", "--pair", "scripted", "--dataset", "two.jsonl", "-o", "run")


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (["solve"], "", "no problem given"),
        (["solve", "1 + 1", "--draft", "scripted:draft"], "", "policy entropy needs a target model"),
        (["solve", "1 + 1", "--policy", "draft", "--draft", "x.gguf"], "", "x.gguf: no such file"),
        (["solv"], "", "No such command 'solv'. Did you mean 'solve'?"),
        ([*SOLVE, "--max-tokens", "0"], "", "--max-tokens: Input should be greater than or equal to 1"),
        ([*SOLVE, "--policy", "best"], "", "--policy: unknown policy 'best'"),
        ([*SOLVE, "--tau", "high"], "", "--tau: invalid tau 'high' for policy entropy"),
        ([*SOLVE, "--policy", "target", "--tau", "1"], "", "--tau: policy target does not use it"),
        ([*SOLVE, "--input", "two.jsonl"], "", "a problem and --input were both given"),
        ([*SOLVE], 'tau = "high"', "arbitrage.toml: tau: invalid tau 'high' for policy entropy"),
        ([*SOLVE], "taus = 1", "arbitrage.toml: unknown setting 'taus'"),
        ([*SOLVE], "tau =", "arbitrage.toml: cannot be read as TOML (Invalid value (at line 1, column 6))"),
        ([*BENCH, "--limit", "4-9"], "", "--limit: '4-9' selects no problems"),
        ([*BENCH, "--policy", "target@1"], "", "--policy: policy target has no tau"),
        (["report", "nowhere"], "", "nowhere: this folder has no run"),
        (["train", "run", "-o", "head.pkl"], "", "--output: head.pkl: a head is a .safetensors file"),
    ],
)
def test_wording_of_an_error(tmp_path: Path, arguments: list[str], settings: str, message: str) -> None:
    write_problems(tmp_path / "two.jsonl", ["1 + 1", "2 + 2"])
    if settings:
        (tmp_path / "arbitrage.toml").write_text(f"{settings}\n")
    result = run(*arguments, cwd=tmp_path)
    assert (result.code, result.out) == (3 if "gguf" in message else 2, "")
    assert result.err.splitlines()[0] == f"arbitrage: {message}"
