"""`advise --costs`, and how the other commands use the measured costs and threads."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cli import MODELS, Result, Terminal, run
from made_up_tuning import FAST_READER

from arbitrage_cli.costs.store import machine_here, read_cache
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


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_costs_are_shown_and_kept_by_sha256_and_machine(home: Home) -> None:
    *_, ratio, saved = home.run("advise", "--costs").out.splitlines()
    assert saved.endswith(f"stored in {home.file}")
    kept = [*read_cache(home.file).tuned]
    low, high = (float(end) for end in ratio.split()[-1].strip("[]").split("-"))
    assert 0.99 * low <= kept[1].costs.decode / kept[0].costs.decode <= 1.01 * high
    assert [one.sha256 for one in kept] == [sha256_of(find_files(f"builtin:{role}")) for role in FAST_READER]
    assert {one.machine for one in kept} == {machine_here()}
    assert all(0 < one.costs.prefill_token < one.costs.decode for one in kept)


def test_one_model_is_measured_alone_as_json(home: Home) -> None:
    (home.folder / "own.toml").write_text("threads = 1\n")
    options = ("--target", "builtin:target", "--ctx", "128", "--config", "own.toml", "--json", "-q")
    result = home.run("advise", "--costs", *options)
    assert (result.err, [*result.record], result.record["target"]["costs"]["batches"][0] > 0) == ("", ["target"], True)


def test_costs_are_kept_under_the_name_of_the_file(home: Home) -> None:
    shutil.copy(find_files("builtin:target")[0], home.folder / "mine-Q8_0.gguf")
    assert home.run("advise", "--costs", "--target", "mine-Q8_0.gguf", "--ctx", "128", "--threads", "1", "-q").code == 0
    assert [one.name for one in read_cache(home.file).tuned] == ["mine-Q8_0.gguf"]


def test_models_without_files_need_no_llama_cpp(home: Home) -> None:
    assert home.run("solve", "5 + 6", *MODELS, without=["llama_cpp"]).code == 0
    assert not home.file.exists()


PHASES = (
    "hashing small.gguf",
    "measuring the token costs of these models",
    "loading draft: ",
    "loading target: ",
    "measuring draft, up to 5 s: ",
    "measuring target, up to 5 s: ",
    "measuring draft and target, up to 10 s: ",
    "loading draft: ",
    "loading target: ",
    "prefill ",
)


def test_a_terminal_names_each_phase_before_the_first_token_and_a_pipe_the_long_ones(home: Home) -> None:
    """With models that are new on this machine."""
    for name, role in (("small.gguf", "draft"), ("large.gguf", "target")):
        shutil.copy(find_files(f"builtin:{role}")[0], home.folder / name)
    question = f"What is {' + '.join(map(str, range(30)))}?"
    command = ("solve", "--draft", "small.gguf", "--target", "large.gguf", "--policy", "speculative", question)
    env = {"XDG_CONFIG_HOME": str(home.folder), "XDG_CACHE_HOME": str(home.folder), "ARBITRAGE_MAX_TOKENS": "4"}
    with Terminal(*command, env=env, cwd=home.folder) as terminal:
        assert terminal.wait() == 0
    shown, position = terminal.raw.decode(), 0
    for phase in PHASES:
        position = shown.find(phase, position) + 1
        assert position, phase
    home.file.unlink()
    lines = run(*command, cwd=home.folder, env=env).err.splitlines()
    assert re.search(r"^measuring the token costs .* up to \d+ s$", lines[0])
