"""`arbitrage advise` as a command: an answer in time, the command and the lines that it ends with, and its exit code."""

import json
import re
import shlex
from pathlib import Path

import pytest
from cli import Result
from faults import write_problems
from made_up_tuning import FAST_READER, pretend
from test_costs import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path)
    pretend(made.file, FAST_READER)
    return made


def until_solved(home: Home, *arguments: str) -> Result:
    """Repeat the command, which adds problems, until one is solved: on a busy machine the time may be too short."""
    for _ in range(20):
        ended = home.run("advise", *arguments, "--json")
        if ended.code or json.loads(ended.stdout)["n"]:
            break
    return ended


def test_there_is_an_answer_within_the_time(home: Home) -> None:
    """A tenth of a second is too little for one problem. Nothing that failed for lack of time counts, or is worth saving."""
    ended = home.run("advise", "--minutes", "0.001", "--offline", "--save", "mine")
    assert (ended.code, "no pair was saved" in ended.err) == (0, True), ended.err
    assert not (home.folder / "arbitrage" / "pairs.toml").exists()
    *said, following = ended.stdout.decode().splitlines()
    assert " in 10" not in " ".join(said)
    assert home.run(*shlex.split(following)[1:-1], "12 + 5", "-q").code == 0
    again = until_solved(home, "--minutes", "0.1")
    found = json.loads(again.stdout)
    assert found["n"] > 0
    assert 0.5 <= (found["verdict"]["confidence"] or 1) <= 1
    assert sum(policy["errors"] for policy in found["policies"]) == 0
    assert max(int(seconds) for seconds in re.findall(r"about (\d+) s left", again.err)) <= 6


def test_the_command_names_the_settings_file_of_the_advice(home: Home) -> None:
    (home.folder / "own.toml").write_text("max-tokens = 8\n")
    ended = home.run("advise", "--minutes", "0.001", "--offline", "--config", "own.toml")
    following = shlex.split(ended.stdout.decode().splitlines()[-1])
    assert "--config own.toml" in shlex.join(following)
    assert json.loads(home.run(*following[1:-1], "12 + 5", "--json").stdout)["stop"] == "max_tokens"


def test_an_answer_from_some_problems_is_no_failure(home: Home) -> None:
    """One of the problems does not fit in the context."""
    write_problems(home.folder / "some.jsonl", ["1" + " + 1" * 200, "2 + 3", "12 + 5"])
    ended = until_solved(home, "--dataset", "some.jsonl", "--minutes", "0.1", "--ctx", "128")
    target = json.loads(ended.stdout)["policies"][0]
    assert (ended.code, target["policy"], target["errors"] > 0, target["n"] > target["errors"]) == (0, "target", True, True)


def test_a_run_of_errors_says_so_and_fails(home: Home) -> None:
    ended = home.run("advise", "--minutes", "0.5", "--ctx", "64", "--system", "Add. " * 64)
    assert (ended.code, " in 10" in ended.out) == (1, False)
    assert int(re.findall(r"(\d+) errors", ended.err)[-1]) >= 5
