"""`arbitrage advise`: what it runs, when it stops, what it says last, and what it keeps."""

import functools
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli import Result, flat
from faults import rows_of
from made_up_runs import parsed
from made_up_tuning import FAST_READER, NO_GAIN
from pairs_file import add_pair
from test_costs import Home

from arbitrage_cli import open_pair
from arbitrage_cli.app.advise import ask_for_advice
from arbitrage_cli.app.gather import advised_pair
from arbitrage_cli.app.options import AdviceOptions, Options
from arbitrage_cli.costs.store import StoredAdvice, keep_advice, read_cache
from arbitrage_cli.model_files.pairs import read_pairs, router_file
from arbitrage_cli.problems.tasks import MATH
from arbitrage_cli.runs.folder import RunFolder

ROUTER = "my router.safetensors"
GIVEN = ("--pair", "builtin", "--offline", "--router", ROUTER, "--max-tokens", "8", "--temperature", "0.5", "--ctx", "2048")
WRONG: Mapping[str, int] = {"draft": 5}
CAREFUL_PAYS = {"target": 1.0, "speculative": 0.8, "agree": 0.8, "arbitrage@careful": 0.4, "draft": 0.1}
NOTHING_PAYS = {**dict.fromkeys(CAREFUL_PAYS, 1.01), "target": 1.0}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path)
    made.pretend(FAST_READER)
    return made


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs the command with some options, once for all tests, and returns a folder with its run and its router."""

    @functools.cache
    def run(*given: str) -> Path:
        home = Home(tmp_path_factory.mktemp("measured"))
        home.pretend(FAST_READER)
        shutil.copy(router_file("builtin:builtin"), home.folder / ROUTER)
        until_solved(home, "--output", "run", *given, "--minutes", "0.3")
        return home.folder

    return run


def until_solved(home: Home, *arguments: str) -> Result:
    """Repeat the command, which adds problems, until one is solved: on a busy machine the time may be too short."""
    for _ in range(20):
        ended = home.run("advise", *arguments, "--json")
        if ended.code or json.loads(ended.stdout)["n"]:
            break
    return ended


def test_there_is_an_answer_within_the_time(home: Home) -> None:
    """A tenth of a second is too little for one problem. Nothing that failed for lack of time counts."""
    ended = home.run("advise", "--minutes", "0.001", "--offline")
    assert ended.code == 0, ended.err
    *said, following = ended.stdout.decode().splitlines()
    assert " in 10" not in " ".join(said)
    assert following.split()[:2] == ["arbitrage", "solve"]
    again = until_solved(home, "--minutes", "0.1")
    found = json.loads(again.stdout)
    assert found["n"] > 0
    assert 0.5 <= (found["verdict"]["confidence"] or 1) <= 1
    assert sum(policy["errors"] for policy in found["policies"]) == 0
    assert max(int(seconds) for seconds in re.findall(r"about (\d+) s left", again.err)) <= 6


def test_the_report_shows_the_figures_of_the_advice(home: Home) -> None:
    """Attempts that the command skipped are not missing, and a policy that cannot be worthwhile has no row."""
    home.pretend(NO_GAIN)
    advice = json.loads(until_solved(home, "--minutes", "0.2", "--offline", "--output", "run").stdout)
    report = json.loads(home.run("report", "run", "--json").stdout)
    assert 0 < advice["n"] == report["n"]
    assert report == advice
    assert not any("missing" in note for note in report["notes"])
    assert "missing" not in home.run("report", "run").out


def as_if(folder: Path, count: int, seconds: Mapping[str, float]) -> None:
    """Rewrite a run to `count` problems with these seconds per policy, up to three times as many, and some wrong drafts."""
    with RunFolder(folder) as opened:
        assert opened.run is not None
        rows_of = {row.route.name: row.to_dict() for row in opened.rows}
        made = [
            parsed(
                row
                | taking(row, seconds[label] * (1 + index % 3))
                | {"id": name}
                | {"grade": {**row["grade"], "value": "incorrect" if index < WRONG.get(label, 0) else "correct"}}
            )
            for index, name in enumerate(list(opened.run.levels)[:count])
            for label, row in rows_of.items()
        ]
        opened.rewrite(made)


def taking(row: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """The changes with which an attempt takes these seconds: the target decodes a token in each millisecond."""
    cost = {"decode_tokens": round(1000 * seconds), "decode_seconds": seconds}
    step = {**row["steps"][0], "model": "target", "cost": cost, "speculation_cost": None, "discarded": None}
    timing = {**row["timing"], "router": {"seconds": 0.0}, "program": {"seconds": 0.0}}
    return {"wall_seconds": seconds, "steps": [step], "timing": timing}


def advised(
    home: Home, measured: Path, count: int, seconds: Mapping[str, float], *given: str, env: Mapping[str, str] | None = None
) -> tuple[Result, list[str]]:
    """The advice if the run in a folder had `count` problems with these seconds, and the command that it ends with."""
    for name in ("run", ROUTER):
        subprocess.run(["cp", "-r", measured / name, home.folder], check=True)
    as_if(home.folder / "run", count, seconds)
    ended = home.run("advise", "--output", "run", *given, "--minutes", "0.001", "--save", env=env)
    return ended, shlex.split(ended.out.splitlines()[-1])


@pytest.mark.parametrize(
    ("count", "seconds", "said", "policy"),
    [
        (
            20,
            CAREFUL_PAYS,
            "routing with arbitrage@careful reaches 2.50x the target's speed",
            ["--policy", "arbitrage", "--tau", "careful"],
        ),
        (20, NOTHING_PAYS, "not worth it (", ["--policy", "target"]),
    ],
    ids=["worth it", "not worth it"],
)
def test_the_command_solves_as_was_measured_and_is_saved(
    home: Home, measured: Callable[..., Path], count: int, seconds: Mapping[str, float], said: str, policy: list[str]
) -> None:
    """With the router that was given, if it is needed, and all that was given of how steps are written. No file is changed."""
    ended, following = advised(home, measured(*GIVEN), count, seconds, *GIVEN)
    assert (ended.code, said in flat(ended.out)) == (0, True), ended.err
    routed = "--tau" in policy
    given = [part for part in GIVEN if routed or part not in ("--router", ROUTER)]
    assert following[:2] == ["arbitrage", "solve"]
    assert sorted(following[2:]) == sorted([*given, *policy, "PROBLEM"])
    solved = home.run(*following[1:-1], "12 + 5", "--json")
    assert solved.record["policy"] == policy[1]
    lines = ended.err.splitlines()
    path = home.folder / "arbitrage" / "pairs.toml"
    assert not path.exists()
    path.write_text("\n".join([*lines[lines.index("[builtin]") :], ""]))
    saved = read_pairs(path)["builtin"]
    assert (saved.policy, saved.tau) == (policy[1], "careful" if routed else None)
    assert saved.router == str(home.folder / ROUTER)


def test_a_run_of_errors_says_so_and_fails(home: Home) -> None:
    ended = home.run("advise", "--minutes", "0.5", "--ctx", "64", "--system", "Add. " * 64)
    assert (ended.code, " in 10" in ended.out) == (1, False)
    assert int(re.findall(r"(\d+) errors", ended.err)[-1]) >= 5


def test_the_target_solves_each_problem_first(measured: Callable[..., Path]) -> None:
    """Then the other policies solve the same problem, so that their answers can be compared."""
    by_problem: dict[str, list[str]] = {}
    for row in rows_of(measured() / "run"):
        by_problem.setdefault(row["id"], []).append(row["policy"])
    assert {policies[0] for policies in by_problem.values()} == {"target"}
    assert max(map(len, by_problem.values())) > 2


ASKED = ("solve", "12 + 5", "--json")


@pytest.fixture
def follower(home: Home) -> Home:
    """A home in which routing pays, but the last advice on the built-in pair is `target`."""
    pair = advised_pair(ask_for_advice(Options(max_tokens=4), MATH, AdviceOptions()))
    keep_advice(home.file, StoredAdvice(pair, "target", "2026-11-29T12:00:00+00:00"))
    return home


def with_advice(home: Home, **changes: Any) -> None:
    content = json.loads(home.file.read_text())
    (advice,) = content["advice"]
    home.file.write_text(json.dumps(content | {"advice": [advice | changes]}))


def policy_of(ended: Result) -> str:
    return str(ended.record["policy"])


def test_the_default_follows_the_last_advice_and_says_when_it_was_given(follower: Home) -> None:
    followed = follower.run(*ASKED)
    assert (policy_of(followed), "2026-11-29" in followed.err) == ("target", True)
    for chosen in (("--policy", "arbitrage"), ("--tau", "careful"), ("--early-stop",), ("--router", "builtin:universal")):
        assert policy_of(follower.run(*ASKED, *chosen)) == "arbitrage"
    other_models = ("--draft", "builtin:target", "--target", "builtin:draft")
    for other in (("--task", "choice"), ("--threads", "1"), ("--system", "Add."), ("--temperature", "0.5"), other_models):
        assert "2026-11-29" not in follower.run(*ASKED, *other).err
    pair = replace(read_pairs()["builtin"], policy="draft")
    add_pair(follower.folder / "arbitrage" / "pairs.toml", pair)
    assert policy_of(follower.run(*ASKED)) == "draft"


def test_a_conversation_does_not_follow_policy_agree(follower: Home) -> None:
    """Neither that of an advice, nor that of the pair's entry. One line says so."""
    for route in ("agree", "target"):
        with_advice(follower, route=route)
        chat = follower.run("chat", stdin=b"12 + 5\n")
        assert (chat.code, flat(chat.err).count("is not used")) == (0, 1), chat.err
        assert policy_of(follower.run(*ASKED)) == "agree"
        add_pair(follower.folder / "arbitrage" / "pairs.toml", replace(read_pairs()["builtin"], policy="agree"))


def test_chat_and_python_follow_the_last_advice(follower: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = follower.run("chat", stdin=b"12 + 5\n")
    assert (chat.code, "2026-11-29" in chat.err) == (0, True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(follower.folder))
    with open_pair(max_tokens=4) as pair:
        assert pair.solve("12 + 5").to_dict()["policy"] == "target"
    with open_pair(tau="careful", max_tokens=4) as pair:
        assert pair.solve("12 + 5").to_dict()["policy"] == "arbitrage"


@pytest.mark.parametrize(("count", "is_stored"), [(4, False), (20, True)])
def test_only_advice_that_was_measured_takes_the_place_of_the_last(
    follower: Home, measured: Callable[..., Path], count: int, is_stored: bool
) -> None:
    ended, _ = advised(follower, measured(), count, NOTHING_PAYS)
    assert ended.code == 0, ended.err
    (advice,) = read_cache(follower.file).advice
    assert (advice.created > "2026-11-30") == is_stored


@pytest.mark.parametrize(
    "changes",
    [{"route": "nonsense"}, {"route": "target@0.5"}, {"route": "arbitrage@high"}, {"route": 5}, {"pair": None}],
    ids=str,
)
def test_invalid_advice_is_ignored_with_one_note(follower: Home, changes: Mapping[str, Any]) -> None:
    with_advice(follower, **changes)
    ended = follower.run(*ASKED)
    assert (policy_of(ended), ended.err.count(" is ignored: ")) == ("arbitrage", 1)


def test_other_settings_begin_another_run(home: Home) -> None:
    for more in ((), ("--max-tokens", "8")):
        ended = home.run("advise", "--minutes", "0.06", *more)
        assert ended.code == 0, ended.err
    assert len([*(home.folder / "runs").iterdir()]) == 2


def test_advice_that_cannot_be_stored_is_given(home: Home, measured: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    nowhere = {"XDG_CONFIG_HOME": str(tmp_path / "file")}
    ended, _ = advised(home, measured(), 20, CAREFUL_PAYS, env=nowhere)
    assert (ended.code, " in 10" in flat(ended.out)) == (0, True), ended.err
