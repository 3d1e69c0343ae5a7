"""Files of each kind that are cut or filled with zeros: an error or a note names the file, and no result is made of it."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from cli import MODELS, Result, run, solve
from faults import write_problems
from made_up_runs import make_run, write_run_folder

from arbitrage_cli.system.files import models_folder

DAMAGES: Mapping[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "half zeros": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "zeros": lambda data: bytes(len(data)),
}
MODEL, ROUTER = "model.gguf", "router.safetensors"
DRAFT = ("--policy", "draft", "-q", "--max-tokens", "20")
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "model, solve": ("solve", "--draft", MODEL, *DRAFT, "1 + 1"),
    "model, info": ("models", "info", MODEL),
    "model, advise": ("advise", "--draft", MODEL, "--target", "builtin:target", "--dataset", "two.jsonl", "-q"),
    "checker": ("solve", "--policy", "agree", "--check", MODEL, "-q", "1 + 1"),
    "router, solve": ("solve", "--router", ROUTER, "-q", "1 + 1"),
    "router, info": ("models", "info", ROUTER),
    "csv": ("solve", *MODELS, "-q", "--input", "two.csv"),
    "data set": ("bench", *MODELS, "--dataset", "two.jsonl", "-q"),
    "states": ("train", "states.jsonl.xz", "-o", "new.safetensors", "-q"),
    "run.json": ("report", "made"),
}
FILES = {"csv": "two.csv", "data set": "two.jsonl", "states": "states.jsonl.xz", "run.json": "made/run.json"}


@pytest.fixture
def here(quick_path: Path) -> Path:
    questions = [f"{number} + {number + 1}" for number in range(20)]
    write_problems(quick_path / "two.jsonl", questions)
    (quick_path / "two.csv").write_text("question,answer\n" + "".join(f"{question},1\n" for question in questions))
    shutil.copy(models_folder() / "draft.gguf", quick_path / MODEL)
    shutil.copy(models_folder() / "universal.safetensors", quick_path / ROUTER)
    shutil.copy(models_folder() / "states" / "smollm2-asdiv.jsonl.xz", quick_path / "states.jsonl.xz")
    write_run_folder(quick_path / "made", make_run(6))
    return quick_path


def damage(path: Path, kind: str) -> None:
    path.write_bytes(DAMAGES[kind](path.read_bytes()))


def run_here(folder: Path, *command: str) -> Result:
    return run(
        *command, cwd=folder, env={"XDG_CACHE_HOME": str(folder / "cache"), "XDG_CONFIG_HOME": str(folder / "config")}
    )


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("case", COMMANDS)
def test_error_names_the_damaged_file(here: Path, case: str, kind: str) -> None:
    if MODEL in COMMANDS[case] and kind == "half zeros":
        pytest.skip("only the computation can show that weights are zeros")
    path = here / FILES.get(case, ROUTER if case.startswith("router") else MODEL)
    damage(path, kind)
    result = run_here(here, *COMMANDS[case])
    assert result.code in (2, 3, 5), result.err
    (message,) = [line for line in result.err.splitlines() if line.startswith("arbitrage: ")]
    assert path.name in message
    if path.name == MODEL:  # a large file is not read to compute its sha256
        assert not (here / "cache" / "arbitrage" / "seen").exists()


def test_second_part_of_a_model_is_checked_too(here: Path) -> None:
    parts = [here / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for part in parts:
        shutil.copy(here / MODEL, part)
    damage(parts[1], "cut")
    for command in (("solve", "--draft", parts[0].name, *DRAFT, "1 + 1"), ("models", "info", parts[0].name)):
        result = run_here(here, *command)
        assert (result.code, parts[1].name in result.err) == (3, True), result.err
    assert not (here / "cache" / "arbitrage" / "seen").exists()


def test_model_whose_weights_are_zeros_is_named(here: Path) -> None:
    """Its header is intact, and its logits are all equal."""
    damage(here / MODEL, "half zeros")
    result = run_here(here, *COMMANDS["model, solve"])
    assert (result.code, result.out) == (4, "")
    assert "arbitrage: arbitrage built-in draft: " in result.err


def test_solution_without_text_is_reported_by_a_quiet_command_too() -> None:
    result = solve("-q", "--policy", "target", "--format", "text", "--max-tokens", "1", stdin=b"1 + 1\n2 + 2\n")
    assert (result.code, result.out) == (1, "\n\n")
    assert [line.partition(":")[0] for line in result.err.splitlines()] == ["problem 1", "problem 2"]


@pytest.mark.parametrize("kind", ["half zeros", "zeros"])
def test_rows_of_zeros_are_named(here: Path, kind: str) -> None:
    """A cut last row is not named, because another process may be writing it."""
    damage(here / "made" / "results.jsonl", kind)
    result = run_here(here, "report", "made", "--json", "-q")
    assert (result.code, "results.jsonl" in result.err) == (0, True)
    assert json.loads(result.out)["policies"]


ROWS = ("--dataset", "two.jsonl", *MODELS, "--max-tokens", "16", "-q")
OF_A_RUN: Mapping[str, tuple[str, ...]] = {
    "bench": ("bench", *ROWS, "--policy", "draft", "--limit", "2", "-o", "RUN"),
    "collect": ("collect", *ROWS, "--reward", "rollout", "--limit", "2", "-o", "RUN"),
    "advise": ("advise", *ROWS, "-o", "RUN"),
    "solve": ("solve", *MODELS, "--policy", "draft", "-i", "two.jsonl", "--limit", "2", "-q", "-o", "RUN.jsonl"),
}
READERS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "bench": (("report", "mine"), ("compare", "made", "mine"), ("report", "mine", "--regrade")),
    "collect": (("train", "mine", "-o", "new.safetensors"),),
}


@pytest.mark.parametrize("replaced", ["rows", "run.json"])
@pytest.mark.parametrize("command", OF_A_RUN)
def test_rows_of_another_run_are_refused(here: Path, command: str, replaced: str) -> None:
    """Somebody copied one of the two files of a run of the same problems at another temperature."""
    runs = {"mine": (), "other": ("--temperature", "0.9")}
    for name, options in runs.items():
        words = [word.replace("RUN", name) for word in OF_A_RUN[command]]
        assert run_here(here, *words, *options).code == 0
    rows, description = ("{}.jsonl", "{}.jsonl.run/run.json") if command == "solve" else ("{}/results.jsonl", "{}/run.json")
    file = rows if replaced == "rows" else description
    shutil.copy(here / file.format("other"), here / file.format("mine"))
    left = [(here / one.format("mine")).read_bytes() for one in (rows, description)]
    changed = runs["other"] if replaced == "run.json" else ()
    again = [*(word.replace("RUN", "mine") for word in OF_A_RUN[command]), *changed]
    for repeated in (again, *READERS.get(command, ())):
        result = run_here(here, *repeated)
        assert (result.code, rows.format("mine") in result.err) == (5, True), result.err
        assert [(here / one.format("mine")).read_bytes() for one in (rows, description)] == left


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.jsonl.run/run.json", "mine.jsonl.run/started.jsonl"])
def test_a_pipe_in_place_of_a_file_of_a_run_is_named(here: Path, name: str) -> None:
    words = [word.replace("RUN", "mine") for word in OF_A_RUN["solve"]]
    assert run_here(here, *words).code == 0
    (here / name).unlink(missing_ok=True)
    os.mkfifo(here / name)
    result = run_here(here, *words)
    assert (result.code, result.err.startswith("arbitrage: mine.jsonl")) == (2, True), result.err
