"""`arbitrage advise`: what it runs, when it stops, what it says last, and what it keeps."""

import itertools
import json
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli import Result, assert_refused
from made_up_runs import Column, make_run, write_run_folder
from test_costs import FAST_READER, Home

from arbitrage_cli.app.advise import Enough, finished
from arbitrage_cli.display.advice import findings
from arbitrage_cli.evaluation.metrics import figures
from arbitrage_cli.model_files.pairs import PairEntry, read_pairs, router_file, save_pair
from arbitrage_cli.runs.folder import RunFolder
from arbitrage_cli.runs.records import route_name

COLUMNS: tuple[Column, ...] = (("target", None), ("draft", None), ("entropy", 0.5))
MINE = PairEntry(
    "mine", "small.gguf", "large.gguf", ctx=2048, system="", chat_template_kwargs={"enable_thinking": False, "n": {"x": "y"}}
)


ROUTER = "my router.safetensors"
GIVEN = ("--pair", "builtin", "--offline", "--router", ROUTER, "--max-tokens", "8", "--temperature", "0.5", "--ctx", "2048")
WRONG: Mapping[str, int] = {"draft": 5}
EXACT_PAYS = {"target": 1.0, "speculative": 0.8, "arbitrage@exact": 0.4, "arbitrage@balanced": 0.8, "draft": 0.1}
NOTHING_PAYS = {**dict.fromkeys(EXACT_PAYS, 1.01), "target": 1.0}
UNCLEAR = {**NOTHING_PAYS, "speculative": 1.85}


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
    """When time runs out at once, the same command resumes, and an undecided verdict is not saved."""
    ended = home.run("advise", "--minutes", "0.001", "--save", "--offline")
    assert ended.code == 0
    *_, sentence, following = ended.stdout.decode().splitlines()
    assert sentence.startswith("Out of time after")
    assert following.split()[:2] == ["arbitrage", "advise"]
    assert not (home.folder / "arbitrage" / "pairs.toml").exists()
    again = home.run("advise", "--minutes", "0.001", "--json")
    found, before = json.loads(again.stdout), int(sentence.split()[4])
    assert found["n"] > before
    labels = [policy["policy"] for policy in found["policies"]]
    assert labels == ["target", "speculative", "arbitrage", "arbitrage", "draft"]
    assert "\nadvise builtin, a sample of 40 of 500: 200 attempts\n" in f"\n{ended.err}"
    left = [int(seconds) for seconds in re.findall(r"about (\d+) s left", ended.err)]
    assert left
    assert max(left) <= 1


def test_a_run_ends_when_its_time_is_up_or_its_problems_decide(folder: RunFolder) -> None:
    """Nine problems were started, and eight were solved with every policy. The ninth is not shown."""
    run, rows = finished(folder, len(COLUMNS))
    assert (len(run["levels"]), len(rows)) == (8, 24)
    ticks = itertools.count(0, 50)
    enough = Enough(folder, len(COLUMNS), minutes=1, clock=lambda: float(next(ticks)))
    assert enough.is_decided() == figures(run, rows)["verdict"]["final"]
    assert enough.seconds_left() == 60
    verdicts = [enough() for _ in range(2)]
    assert (verdicts[1], enough.out_of_time, enough.seconds_left()) == (True, True, 0)


def as_if(folder: Path, count: int, seconds: Mapping[str, float], **changes: Any) -> None:
    """Rewrite a run to `count` problems with these seconds per policy, up to three times as many, and some wrong drafts.

    With `UNCLEAR`, speculation takes the same time on every problem, so its speed-up varies.
    """
    with RunFolder(folder) as opened:
        assert opened.run is not None
        names = {(one["policy"], one["tau"]): one["tau_name"] for one in opened.run["policies"]}
        rows_of = {route_name(*key, names[key]): row for row in opened.rows if (key := (row["policy"], row["tau"])) in names}
        rows = [
            row
            | taking(row, seconds[label] * (1 if (seconds, label) == (UNCLEAR, "speculative") else 1 + index % 3))
            | {"id": name}
            | {"grade": {**row["grade"], "value": "incorrect" if index < WRONG.get(label, 0) else "correct"}}
            | changes
            for index, name in enumerate(list(opened.run["levels"])[:count])
            for label, row in rows_of.items()
        ]
        opened.rewrite(rows)


def taking(row: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """The changes with which an attempt takes these seconds: the target decodes a token in each millisecond."""
    cost = {"decode_tokens": round(1000 * seconds), "decode_seconds": seconds}
    step = {**row["steps"][0], "model": "target", "cost": cost, "speculation_cost": None, "discarded": None}
    timing = {**row["timing"], "router": {"seconds": 0.0}, "program": {"seconds": 0.0}}
    return {"wall_seconds": seconds, "steps": [step], "timing": timing}


def advised(home: Home, count: int, seconds: Mapping[str, float], *given: str, **changes: Any) -> tuple[Result, list[str]]:
    shutil.copy(router_file("builtin:builtin"), home.folder / ROUTER)
    order = ("advise", "--output", "run", "--minutes", "0.01", *given)
    home.run(*order, "-q")
    as_if(home.folder / "run", count, seconds, **changes)
    ended = home.run(*order, "--save")
    return ended, shlex.split(ended.out.splitlines()[-1])


@pytest.mark.parametrize(
    ("count", "seconds", "said", "policy"),
    [
        (
            20,
            EXACT_PAYS,
            "Routing with arbitrage@exact is worth it on this machine: 2.50x",
            ["--policy", "arbitrage", "--tau", "exact"],
        ),
        (5, NOTHING_PAYS, "This pair is not worth using", ["--policy", "target"]),
    ],
    ids=["it pays", "it does not, as five problems show"],
)
def test_the_command_solves_as_was_measured_and_is_saved(
    home: Home, count: int, seconds: Mapping[str, float], said: str, policy: list[str]
) -> None:
    """With the router that was given, if it is needed, and all that was given of how steps are written."""
    ended, following = advised(home, count, seconds, *GIVEN)
    assert (ended.code, said in ended.out) == (0, True), ended.err
    routed = "--tau" in policy
    given = [part for part in GIVEN if routed or part not in ("--router", ROUTER)]
    assert following[:2] == ["arbitrage", "solve"]
    assert sorted(following[2:]) == sorted([*given, *policy, "PROBLEM"])
    solved = home.run(*following[1:-1], "12 + 5", "--json")
    assert (solved.code, solved.records[0]["policy"]) == (0, policy[1]), solved.err
    saved = read_pairs(home.folder / "arbitrage" / "pairs.toml")["builtin"]
    assert (saved.policy, saved.tau) == (policy[1], "exact" if routed else None)
    assert saved.router == (str(home.folder / ROUTER) if routed else read_pairs()["builtin"].router)


def test_a_benchmark_decides_what_forty_problems_do_not(home: Home) -> None:
    ended, following = advised(home, 40, UNCLEAR, *GIVEN)
    assert "Not decided after 40 problems: speculative" in ended.out
    assert following[:6] == ["arbitrage", "bench", "--dataset", "builtin", "--limit", "100"]
    assert following[-2:] == ["--policy", ",".join(EXACT_PAYS)]
    assert set(GIVEN) < set(following)
    assert not (home.folder / "arbitrage" / "pairs.toml").exists()


def test_answers_that_cannot_be_compared_decide_nothing(home: Home) -> None:
    """Routing would pay if it kept the answers, which only a reader can tell."""
    ungraded = {"value": "unscored", "answer": None, "explanation": ""}
    seconds = {**EXACT_PAYS, "speculative": 1.01}
    ended, following = advised(home, 8, seconds, "--task", "free", "--pair", "builtin", grade=ungraded, answer=None)
    assert "Not decided after 8 problems: arbitrage@exact" in ended.out
    assert following == ["arbitrage", "report", "run", "-o", "report.html"]
    assert not (home.folder / "arbitrage" / "pairs.toml").exists()


def test_a_run_of_errors_says_so_and_fails(home: Home) -> None:
    ended = home.run("advise", "--minutes", "0.01", "--ctx", "64", "--system", "Add. " * 64)
    *_, sentence, following = ended.out.splitlines()
    assert ended.code == 1
    assert int(re.findall(r"\d+", sentence)[0]) >= 5
    assert following.split()[:2] == ["arbitrage", "advise"]


def test_problems_are_solved_one_at_a_time(home: Home) -> None:
    """Blocks of several would be too few to compare."""
    assert_refused(home.run("advise", "--concurrency", "4"), 2, "", "--concurrency")


def test_what_is_found_of_the_models(folder: RunFolder) -> None:
    run, rows = finished(folder, len(COLUMNS))
    found = dict(findings(figures(run, rows)))
    answers = {(row["policy"], row["id"]): row["answer"] for row in rows}
    same = sum(answers["draft", name] == answers["target", name] for name in run["levels"])
    assert found["costs"] == "a target token costs 3.50 draft tokens"
    assert found["answers"] == f"the draft and the target agree on {same} of 8"


def test_advice_is_written_to_the_entry_of_the_pair(tmp_path: Path) -> None:
    """A new one has all of the pair; in one that is there the rest stays as it is."""
    path = tmp_path / "new" / "pairs.toml"
    save_pair(path, replace(MINE, policy="arbitrage", tau="balanced"))
    assert read_pairs(path)["mine"] == replace(MINE, policy="arbitrage", tau="balanced")
    path.write_text(path.read_text() + '# of another\n[other] # pair\ndraft = "a.gguf"\ntarget = "b.gguf"\n')
    save_pair(path, replace(MINE, policy="speculative"))
    assert read_pairs(path)["mine"] == replace(MINE, policy="speculative")
    save_pair(path, replace(read_pairs(path)["other"], policy="target"))
    assert read_pairs(path)["other"] == PairEntry("other", "a.gguf", "b.gguf", policy="target")
    assert "# of another\n[other] # pair\n" in path.read_text()
    save_pair(path, replace(read_pairs(path)["other"], policy="arbitrage", router="other.safetensors"))
    assert read_pairs(path)["other"] == PairEntry(
        "other", "a.gguf", "b.gguf", policy="arbitrage", router="other.safetensors"
    )


def test_the_other_commands_follow_the_advice(home: Home) -> None:
    pair = read_pairs()["builtin"]
    save_pair(home.folder / "arbitrage" / "pairs.toml", replace(pair, policy="draft"))
    asked = ("solve", "12 + 5", "--format", "json")
    assert json.loads(home.run(*asked).stdout)["policy"] == "draft"
    assert json.loads(home.run(*asked, "--policy", "target").stdout)["policy"] == "target"
