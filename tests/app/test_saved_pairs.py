"""`advise --save`: the pair that is written solves problems as was measured, from any folder. Most attempts are made up."""

import shlex
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli import MODELS, assert_refused, run
from commands import MATH, Shown, refused, typed
from fake_server import HashServer, on_loopback
from hash_language import HashBackend
from made_up_attempts import AGREE_PAYS, CAREFUL_PAYS, NOTHING_PAYS, Attempts, made_up_attempts
from made_up_tuning import FAST_READER, make_tuned, pretend, unit_costs
from pairs_file import add_pair
from test_agree import Answering

from arbitrage_cli.app.asking.request import ask
from arbitrage_cli.app.commands.advise import Advice
from arbitrage_cli.app.commands.bench import BenchRun
from arbitrage_cli.app.deciding.decide import decide
from arbitrage_cli.app.deciding.gather import gather
from arbitrage_cli.app.entries.ask_advice import advise_pair
from arbitrage_cli.app.options import AdviceOptions, Options
from arbitrage_cli.costs.store import keep_tuned, machine_here, read_cache, tuned_file
from arbitrage_cli.errors import PairNotSavedError
from arbitrage_cli.model_files.checksums import sha256_of
from arbitrage_cli.model_files.pairs import ModelEntry, PairEntry, find_files, read_pairs, router_file
from arbitrage_cli.runs.folder import run_to_resume
from arbitrage_cli.runs.records import ADVISE
from arbitrage_cli.runs.run import Setup

QUESTION = "5 + 6"
NOTHING_CAN_PAY = {"draft": unit_costs(0.95, 4.0, 16.0, 0.1), "target": unit_costs(1.0, 4.0, 16.0, 0.1)}
"""Costs at which the target is recommended before the first problem."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A settings folder, and a folder with models, in which advice is asked for."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (work := tmp_path / "work").mkdir()
    monkeypatch.chdir(work)
    pretend(tuned_file(), FAST_READER)
    thinking = sha256_of(find_files("builtin:thinking-target"))
    keep_tuned(tuned_file(), [make_tuned(machine_here(), thinking, 1, FAST_READER["target"])])
    for name in ("draft", "target"):
        shutil.copy(find_files(f"builtin:{name}")[0], f"{name}.gguf")
    shutil.copy(router_file("builtin:builtin"), "my router.safetensors")
    return tmp_path


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> Attempts:
    return made_up_attempts(monkeypatch)


def pairs_file(home: Path) -> Path:
    return home / "arbitrage" / "pairs.toml"


def saved(options: Options, name: str = "mine", output: str = "run") -> Advice:
    return advise_pair(options, AdviceOptions(output_folder=Path(output), minutes=1.0, save=name), Shown())


def solved(home: Path, command: str, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The record of the command that `advise` printed, from another folder."""
    words = shlex.split(command)
    assert (words[:2], words[-1]) == (["arbitrage", "solve"], "PROBLEM")
    settings = {"XDG_CONFIG_HOME": str(home)}
    return run(*words[1:-1], QUESTION, "--json", cwd=home, env=settings | dict(env or {})).record


def setup_of(options: Options) -> Setup:
    request = ask(options, MATH)
    return decide(request, gather(request))


FILES = {"draft": "draft.gguf", "target": "./target.gguf"}
GIVEN: list[tuple[dict[str, Any], Mapping[str, float], list[str]]] = [
    (FILES, CAREFUL_PAYS, []),
    (FILES | {"check": "draft.gguf", "router": "my router.safetensors"}, AGREE_PAYS, []),
    (FILES | {"router": "my router.safetensors", "ctx": 700}, CAREFUL_PAYS, []),
    (
        FILES | {"system": "Add.", "max_tokens": 32, "temperature": 0.5},
        NOTHING_PAYS,
        ["--max-tokens", "--temperature"],
    ),
    ({"pair": "builtin", "offline": True}, AGREE_PAYS, ["--offline"]),
    ({"pair": "builtin", "think": "on"}, CAREFUL_PAYS, ["--think"]),
]


@pytest.mark.parametrize(("values", "seconds", "beside"), GIVEN, ids=str)
def test_the_saved_pair_solves_as_was_measured(
    home: Path, attempts: Attempts, values: dict[str, Any], beside: list[str], seconds: Mapping[str, float]
) -> None:
    """With the models, the router and the settings of the advice. What an entry cannot hold stays in the command."""
    attempts(20, seconds)
    made = saved(typed(**values))
    assert made.saved == read_pairs(pairs_file(home))["mine"]
    assert (made.saved.policy, made.saved.tau) == (made.policy, made.tau)
    assert [word for word in shlex.split(made.command) if word.startswith("--")] == ["--pair", *beside]
    measured = run_to_resume(Path("run"), ADVISE)
    assert measured
    route = next(one for one in measured.routes if one.name == made.verdict.route.name)
    record = solved(home, made.command)
    assert (record["policy"], record["tau"]) == (route.policy.name, route.tau)
    expected = measured.decided.settings.of_call()
    del expected["check_thinking"]  # only policy `agree` has one
    assert {name: record["settings"][name] for name in expected} == expected
    router = measured.decided.router if route.policy.needs_router else None
    assert record["settings"]["router_sha256"] == (router and router.sha256)
    decided = setup_of(typed(pair="mine", **{name: values[name] for name in values.keys() & {"think", "max_tokens"}}))
    for role, model in decided.models.items():
        before = measured.decided.models[role]
        assert (model.sha256, model.context_size) == (before.sha256, before.context_size)


def test_a_run_that_continues_is_saved_with_its_models(home: Path, attempts: Attempts) -> None:
    """Whatever is named today. The table is written after the run has its verdict, which may take several commands."""
    attempts(20, CAREFUL_PAYS)
    given = typed(**FILES, router="my router.safetensors", check="draft.gguf", ctx=700)
    advise_pair(given, AdviceOptions(output_folder=Path("run"), minutes=1.0), Shown())
    made = saved(Options())
    assert made.saved
    assert made.saved.router == str(home / "work" / "my router.safetensors")
    assert made.saved.target.source == str(home / "work" / "target.gguf")
    assert made.saved.check
    assert made.saved.ctx == 700


def test_a_table_has_what_the_pair_of_the_advice_has(
    home: Path, attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its prices, the variable of a key, and its template, with the whole path."""
    Path("template.jinja").write_text(HashBackend.chat_template or "")
    monkeypatch.setenv("MY_KEY", "secret")
    attempts(20, NOTHING_PAYS)
    with on_loopback(HashServer(key="secret")) as address:
        target = ModelEntry(address, api_key_env="MY_KEY", template="template.jinja", price="2/4")
        draft = ModelEntry("draft.gguf", price="0.5/1")
        pair = PairEntry("first", draft, target, prm="builtin:prm", system="", chat_template_kwargs={"a": False})
        add_pair(pairs_file(home), pair)
        made = saved(typed(pair="first"))
    assert made.saved == replace(
        pair,
        name="mine",
        draft=replace(draft, source=str(home / "work" / "draft.gguf")),
        target=replace(target, template=str(home / "work" / "template.jinja")),
        policy=made.policy,
        notes=made.saved.notes if made.saved else "",
    )


@pytest.mark.parametrize(("variable", "is_several"), [("ARBITRAGE_TARGET_API_KEY", True), ("ARBITRAGE_API_KEY", False)])
def test_a_served_target_is_used_with_the_variable_of_its_key_and_the_key_is_stored_nowhere(
    home: Path, attempts: Attempts, monkeypatch: pytest.MonkeyPatch, variable: str, *, is_several: bool
) -> None:
    monkeypatch.setenv(variable, "secret")
    attempts(20, NOTHING_PAYS)
    with on_loopback(server := Answering()) as address, on_loopback(Answering()) as other:
        server.key = "secret"
        made = saved(typed(draft=other if is_several else "draft.gguf", target=address))
        assert made.saved
        assert made.saved.target.api_key_env == variable
        server.bodies.clear()
        assert solved(home, made.command, {variable: "secret"})["answer"] == "11"
        assert server.asked()[QUESTION] == 1
    stored = [path.read_bytes() for path in home.rglob("*") if path.suffix in (".toml", ".json", ".jsonl")]
    assert len(stored) > 2
    assert not any(b"secret" in content for content in stored)
    words = shlex.split(made.command)[1:-1]
    assert_refused(run(*words, QUESTION, cwd=home, env={"XDG_CONFIG_HOME": str(home)}), 2, "", variable)


def test_nothing_is_written_without_a_verdict(home: Path, attempts: Attempts) -> None:
    attempts(2, CAREFUL_PAYS)
    made = saved(Options())
    assert (made.saved, made.not_saved, made.minutes is not None) == (None, None, True)
    assert "--pair mine" not in made.command
    assert not pairs_file(home).exists()


def test_nothing_is_written_that_follows_from_disturbed_costs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten busy seconds would otherwise decide for good. Once the costs are good, the same command saves the pair."""
    monkeypatch.setattr("arbitrage_cli.app.deciding.prepare.other_cores", lambda seconds: 8.0)
    for is_disturbed in (True, False):
        tuned_file().unlink()
        pretend(tuned_file(), NOTHING_CAN_PAY)
        if is_disturbed:
            cache = read_cache(tuned_file()).tuned
            tuned_file().unlink()
            keep_tuned(tuned_file(), [replace(one, is_disturbed=True) for one in cache])
        made = saved(typed(**FILES), output=f"run-{is_disturbed}")
        assert (made.policy, made.verdict.is_by_bounds, made.is_approximate) == ("target", True, is_disturbed)
        assert pairs_file(home).exists() is (made.saved is not None) is not is_disturbed


@pytest.mark.parametrize("name", ["a b", "mine"])
def test_a_pair_that_cannot_be_saved_is_refused_before_the_first_problem(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    add_pair(pairs_file(home), PairEntry("mine", ModelEntry("a.gguf"), ModelEntry("b.gguf")))
    before = pairs_file(home).read_bytes()
    monkeypatch.setattr(BenchRun, "measure", lambda *given: pytest.fail("a problem was solved"))
    assert refused(saved, typed(**FILES), name).option == "save"
    assert pairs_file(home).read_bytes() == before
    assert not Path("run").exists()


def test_advice_is_not_lost_if_the_pair_cannot_be_written_in_the_end(home: Path, attempts: Attempts) -> None:
    """For example, because another command saved a pair with this name in the meantime. The error has the whole table."""
    attempts(20, CAREFUL_PAYS)
    measure = BenchRun.measure

    def slow(run: BenchRun, *given: Any) -> None:
        measure(run, *given)
        add_pair(pairs_file(home), PairEntry("mine", ModelEntry("a.gguf"), ModelEntry("b.gguf")))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(BenchRun, "measure", slow)
        made = saved(typed(**FILES))
    assert made.saved is None
    assert isinstance(made.not_saved, PairNotSavedError)
    assert tomllib.loads("\n".join(made.not_saved.lines))["mine"]["policy"] == "arbitrage"
    assert "--pair mine" not in made.command
    assert read_pairs(pairs_file(home))["mine"].draft.source == "a.gguf"


def test_the_command_line_saves_a_verdict_and_names_what_it_did(home: Path) -> None:
    """The costs of tokens decide, so no problem is solved. Run again, the name is taken."""
    pretend(tuned_file(), NOTHING_CAN_PAY)
    where: dict[str, Any] = {"cwd": Path.cwd(), "env": {"XDG_CONFIG_HOME": str(home)}}
    arguments = ("advise", "--draft", "draft.gguf", "--target", "target.gguf", "--minutes", "0.1", "--save")
    ended = run(*arguments, "mine", **where)
    assert ended.code == 0
    assert str(pairs_file(home)) in ended.err
    *_, command = ended.out.splitlines()
    assert solved(home, command)["policy"] == "target"
    before = pairs_file(home).read_bytes()
    again = run(*arguments, "mine", **where)
    assert_refused(again, 2, "--save: ")
    assert tomllib.loads(again.err.partition("arbitrage: ")[0]).keys() == {"mine"}
    assert (run(*arguments, "other", "-q", **where).code, pairs_file(home).read_bytes().startswith(before)) == (0, True)
    assert read_pairs(pairs_file(home))["other"].policy == "target"


def test_the_name_to_save_is_no_setting(home: Path) -> None:
    assert "ARBITRAGE_SAVE has no effect" in run("solve", *MODELS, QUESTION, env={"ARBITRAGE_SAVE": "mine"}).err
    (file := home / "own.toml").write_text('[advise]\nsave = "mine"\n')
    assert_refused(run("advise", "--config", str(file), "--costs"), 2, f"{file}: ", "'save'")
