"""`arbitrage advise`: what it runs, when it stops, what it says last, and what it keeps."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_runs import Column, make_run, write_run_folder
from test_tune_command import FAST_READER, Home

from arbitrage_cli.app.advice import Enough, findings, finished
from arbitrage_cli.evaluation.metrics import figures
from arbitrage_cli.model_files.pairs import Pair, read_pairs, save_pair
from arbitrage_cli.runs.folder import RunFolder

COLUMNS: tuple[Column, ...] = (("target", None), ("draft", None), ("entropy", 0.5))
MINE = Pair(
    "mine", "small.gguf", "large.gguf", ctx=2048, system="", chat_template_kwargs={"enable_thinking": False, "n": {"x": "y"}}
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path)
    made.pretend(FAST_READER)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    made = make_run(9, columns=COLUMNS)
    write_run_folder(tmp_path / "run", replace(made, rows=made.rows[:-1]))
    with RunFolder(tmp_path / "run") as opened:
        yield opened


def test_the_last_lines_are_a_sentence_and_a_command(home: Home) -> None:
    """Here the time is up at once. The same command goes on, and nothing is saved that was not decided."""
    ended = home.run("advise", "--minutes", "0.01", "--save", "--offline")
    assert ended.code == 0
    *_, sentence, following = ended.stdout.decode().splitlines()
    assert sentence.startswith("Out of time after")
    assert following.split()[:2] == ["arbitrage", "advise"]
    assert not (home.folder / "arbitrage" / "pairs.toml").exists()
    again = home.run("advise", "--minutes", "0.01", "--json")
    found, before = json.loads(again.stdout), int(sentence.split()[4])
    assert found["n"] > before
    labels = [policy["policy"] for policy in found["policies"]]
    assert labels == ["target", "speculative", "arbitrage", "arbitrage", "draft"]


def test_a_run_ends_when_its_time_is_up_or_its_problems_decide(folder: RunFolder) -> None:
    """Nine problems were begun, and eight were tried in every way: of the ninth, nothing is shown."""
    run, rows = finished(folder, len(COLUMNS))
    assert (len(run["levels"]), len(rows)) == (8, 24)
    ticks = itertools.count(0, 50)
    enough = Enough(folder, len(COLUMNS), minutes=1, clock=lambda: float(next(ticks)))
    assert enough.is_decided() == figures(run, rows)["verdict"]["final"]
    verdicts = [enough() for _ in range(2)]
    assert (verdicts[1], enough.out_of_time) == (True, True)


def test_what_is_found_of_the_models(folder: RunFolder) -> None:
    """What tokens cost, and how often the draft agrees: as the rows say."""
    run, rows = finished(folder, len(COLUMNS))
    found = dict(findings(figures(run, rows), rows, of_code=False))
    answers = {(row["policy"], row["id"]): row["answer"] for row in rows}
    same = sum(answers["draft", name] == answers["target", name] for name in run["levels"])
    assert found["costs"] == "a token of the target costs 3.5 of the draft's"
    assert found["answers"] == f"the draft alone gives {same} of 8 answers of the target"
    assert found["steps"].endswith("of 8 first steps conclude the same in both models")


def test_advice_is_written_to_the_entry_of_the_pair(tmp_path: Path) -> None:
    """A new one has all of the pair; in one that is there the rest stays as it is."""
    path = tmp_path / "new" / "pairs.toml"
    save_pair(path, replace(MINE, policy="arbitrage", tau="balanced"))
    assert read_pairs(path)["mine"] == replace(MINE, policy="arbitrage", tau="balanced")
    path.write_text(path.read_text() + '# of another\n[other] # pair\ndraft = "a.gguf"\ntarget = "b.gguf"\n')
    save_pair(path, replace(MINE, policy="speculative"))
    assert read_pairs(path)["mine"] == replace(MINE, policy="speculative")
    save_pair(path, replace(read_pairs(path)["other"], policy="target"))
    assert read_pairs(path)["other"] == Pair("other", "a.gguf", "b.gguf", policy="target")
    assert "# of another\n[other] # pair\n" in path.read_text()


def test_the_other_commands_follow_the_advice(home: Home) -> None:
    pair = read_pairs()["builtin"]
    save_pair(home.folder / "arbitrage" / "pairs.toml", replace(pair, policy="draft"))
    asked = ("solve", "12 + 5", "--format", "json")
    assert json.loads(home.run(*asked).stdout)["policy"] == "draft"
    assert json.loads(home.run(*asked, "--policy", "target").stdout)["policy"] == "target"
