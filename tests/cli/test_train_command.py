"""`arbitrage train`: from run folders to a head that can be used, and what a user is told."""

import io
import json
import subprocess
from pathlib import Path

import pytest
from cli import ESCAPE, Result, flat, run, start
from collected import COSTS, World, questions, write_run

from arbitrage_cli.cli.train import name_of_head
from arbitrage_cli.display.card import write_card
from arbitrage_cli.routing.head_file import load
from arbitrage_cli.routing.thresholds import TauTable
from arbitrage_cli.runs.folder import encode

PATIENCE = 300.0  # seconds: scikit-learn is slow to import where a machine is busy
SIGNAL = World(bias=0.0, weights=(("logprob_min", -2.0), ("numbers", 1.0)))


def train(*arguments: str, cwd: Path) -> Result:
    """Run `arbitrage train` to its end."""
    with start("train", *arguments, stdin=subprocess.DEVNULL, cwd=cwd) as process:
        try:
            written, told = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    return Result(process.returncode, written, told)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `run`, and the head that was trained on it."""
    folder = tmp_path_factory.mktemp("train")
    write_run(folder / "run", questions(120), SIGNAL)
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> Result:
    return train("run", "-o", "head.safetensors", "--inputs", "agnostic", cwd=folder)


def test_writes_a_head_that_can_be_used(folder: Path, trained: Result) -> None:
    assert trained.code == 0
    head = load(folder / "head.safetensors")
    assert head.card.name == "run"
    assert head.card.command == ("arbitrage", "train", "run", "-o", "head.safetensors", "--inputs", "agnostic")
    assert TauTable.from_json(head.card.taus).costs is not None


def test_shows_how_good_it_is(trained: Result) -> None:
    shown = flat(trained.out)
    for word in (
        "AUC",
        "Spearman",
        "calibration error",
        "accept class",
        "escalate class",
        "entropy",
        "lowest logprob",
        "mean logprob",
        "rsd",
        "random",
        "always",
        "never",
        "exact",
        "balanced",
        "fast",
        "wasted",
        "time",
    ):
        assert word in shown
    assert max(map(len, trained.out.splitlines())) < 80
    assert ESCAPE not in trained.stdout + trained.stderr
    assert "learning" in trained.err
    assert "wrote head.safetensors" in trained.err


def test_card_as_json(folder: Path) -> None:
    arguments = ("--inputs", "agnostic", "--json", "--quiet", "--name", "mine", "--margin", "0.5", "--by-advantage")
    found = train("run", "-o", "json.safetensors", *arguments, cwd=folder)
    (card,) = found.records
    assert (found.code, found.err) == (0, "")
    assert card == json.loads(json.dumps(load(folder / "json.safetensors").card.to_json()))
    assert (card["name"], card["margin"], card["data"]["by_advantage"]) == ("mine", 0.5, True)
    assert card["taus"]["costs"]["target_seconds_per_token"] == COSTS["target_seconds_per_token"]


def test_a_head_is_called_as_its_file_or_its_pair(folder: Path, tmp_path: Path) -> None:
    run_json = folder / "run" / "run.json"
    of_pair = json.loads(run_json.read_text())
    del of_pair["checksum"]
    for role in ("draft", "target"):
        of_pair["models"][role]["source"] = f"builtin:{role}"
    (tmp_path / "paired").mkdir()
    (tmp_path / "paired" / "run.json").write_bytes(encode(of_pair))
    runs = [folder / "run", tmp_path / "paired"]
    assert name_of_head(Path("mine.safetensors"), runs) == "mine"
    assert name_of_head(Path("head.safetensors"), runs[1:]) == "builtin"
    assert name_of_head(Path("head.safetensors"), runs) == "run+builtin"


def test_names_are_data(folder: Path, trained: Result) -> None:
    assert trained.code == 0
    card = load(folder / "head.safetensors").card.to_json()
    hostile = "\x1b]0;pwned\x07[/INST]\n\x1b[2K"
    models = {"draft": {"name": hostile}, "target": {"name": hostile}}
    stream = io.StringIO()
    write_card(card | {"name": hostile, "pairs": [models], "reward": {"kind": hostile}}, {}, stream)
    assert ESCAPE.decode() not in stream.getvalue()
    assert "[/INST]" in stream.getvalue()


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["nowhere"], 2, "no run in this folder"),
        (["run", "-o", "head.pkl"], 2, ".safetensors"),
        (["run", "--inputs", "hidden"], 2, "hidden states"),
        (["run", "--test", "run"], 2, "run is given twice"),
        (["run", "nowhere/../run/."], 2, "is given twice"),
        (["run", "--margin", "-1"], 2, "margin"),
        ([], 2, "RUN"),
    ],
)
def test_what_cannot_be_used_is_said(folder: Path, arguments: list[str], code: int, reason: str) -> None:
    found = train("-o", "none.safetensors", *arguments, cwd=folder)
    assert found.code == code
    assert reason in flat(found.err)
    assert "Traceback" not in found.err
    assert not (folder / "none.safetensors").exists()


def test_place_that_cannot_be_written_to(folder: Path) -> None:
    found = run("train", "run", "-o", "nowhere/head.safetensors", cwd=folder)
    assert found.code == 1
    assert "nowhere/head.safetensors: cannot be written" in found.err
    assert "learning" not in found.err


def test_without_scikit_learn(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sklearn").mkdir()
    (tmp_path / "sklearn" / "__init__.py").write_text("raise ImportError('not here')\n")
    found = run("train", "run", "-o", "none.safetensors", cwd=folder, env={"PYTHONPATH": str(tmp_path)})
    assert found.code == 2
    assert 'pip install "scikit-learn>=1.7"' in found.err
