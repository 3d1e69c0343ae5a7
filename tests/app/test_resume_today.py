"""What today's settings, pairs, files and servers are to a run that continues: each case has been wrong once."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_hub
import pytest
from commands import Shown, asked_to_bench, bench, collect, refused, solve, typed
from fake_server import HashServer, on_loopback
from faults import rows_of, run_json, write_problems, write_rows
from pairs_file import add_pair
from small_routers import write_router

from arbitrage_cli import rewards
from arbitrage_cli.api import open_pair
from arbitrage_cli.app.asking.needs import permitted
from arbitrage_cli.app.asking.request import ask_to_collect, ask_to_compare
from arbitrage_cli.app.commands.bench import regrade, run_bench
from arbitrage_cli.app.commands.collect import Collection
from arbitrage_cli.app.deciding.plan import Plan, plan_without_models
from arbitrage_cli.app.entries.ask_advice import advise_pair
from arbitrage_cli.app.entries.ask_run import ask_for_run
from arbitrage_cli.app.entries.start import open_session, session_of
from arbitrage_cli.app.options import AdviceOptions, BenchOptions, CollectOptions, Options, ProblemOptions
from arbitrage_cli.errors import DamagedRunError, UsageError
from arbitrage_cli.model_files.pairs import ModelEntry, read_pairs
from arbitrage_cli.problems.tasks import CODE
from arbitrage_cli.routing.route import need_router
from arbitrage_cli.runs.folder import RunFolder
from arbitrage_cli.runs.records import BENCH, COLLECT
from arbitrage_cli.system.files import models_folder

QUESTIONS = ("31 + 12", "5 * 7", "14 - 9 + 3", "27 + 2 * 6")
CREATED = "2026-11-29T12:00:00+00:00"
DRAFT = {"draft": "builtin:draft", "policy": "draft", "max_tokens": 24}


@pytest.fixture(autouse=True)
def here(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(quick_path))
    monkeypatch.chdir(quick_path)
    (quick_path / "arbitrage").mkdir()
    write_problems(quick_path / "problems.jsonl", QUESTIONS)
    return quick_path


def stop_after(count: int, results: Path) -> None:
    results.write_text("".join(results.read_text().splitlines(keepends=True)[:count]))


def name_pair(**changes: Any) -> None:
    """Write a pair of the built-in models, called mine, with these changes."""
    (path := Path("arbitrage/pairs.toml")).unlink(missing_ok=True)
    add_pair(path, replace(read_pairs()["builtin"], name="mine", **{"policy": None, **changes}))


def texts(results: Path) -> list[str]:
    return [row["text"] for row in rows_of(results.parent, results.name)]


def test_the_file_that_was_checked_is_opened(here: Path, tiny: Mapping[str, Path]) -> None:
    """Another model lies where the run's model lay."""
    first = Path(shutil.copy(tiny["draft"], here / "draft.gguf"))
    options = {"policy": "draft", "max_tokens": 16, "ctx": 256}
    solve(here, typed(draft=str(first), **options))
    whole = texts(here / "out.jsonl")
    stop_after(2, here / "out.jsonl")
    moved = first.rename(here / "mine.gguf")
    shutil.copy(tiny["base"], first)
    solve(here, typed(draft=str(moved), **options))
    assert texts(here / "out.jsonl") == whole
    stop_after(2, here / "out.jsonl")
    assert refused(solve, here, typed(draft=str(first), **options)).option == "draft"


def test_a_model_that_moved_is_found_where_an_option_a_setting_or_the_pair_names_it(
    here: Path, tiny: Mapping[str, Path]
) -> None:
    """And nowhere else, such as beside another model that moved with it."""
    (here / "old").mkdir()
    (here / "new").mkdir()
    models = {role: Path(shutil.copy(tiny[role], here / "old" / f"{role}.gguf")) for role in ("draft", "target")}
    options = {"policy": "draft,target", "max_tokens": 8, "ctx": 256}
    bench(here, typed(**{role: str(path) for role, path in models.items()}, **options))
    results = here / "run" / "results.jsonl"
    stop_after(3, results)
    moved = {role: str(path.rename(here / "new" / path.name)) for role, path in models.items()}
    assert refused(bench, here, typed(draft=moved["draft"], **options)).option == "target"
    bench(here, typed(draft=moved["draft"], policy="draft"))
    assert [row["policy"] for row in rows_of(here / "run")].count("draft") == 4  # its target is missing, and not needed

    name_pair(target=replace(read_pairs()["builtin"].target, source=moved["target"]))
    for chosen in (
        typed(**moved),
        replace(typed(draft=moved["draft"]), target=moved["target"]),
        typed(pair="mine", draft=moved["draft"]),
    ):
        stop_after(3, results)
        bench(here, chosen)
        assert len(rows_of(here / "run")) == 8
        assert moved.items() <= run_json(here / "run")["places"].items()


def test_the_router_of_a_model_that_is_fetched_now_scores_the_steps(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy with a router is added to a run, and its target is not on this machine yet."""
    with fake_hub.running() as served:
        served.repos["me/target"] = {"target-Q8_0.gguf": (models_folder() / "target.gguf").read_bytes()}
        fake_hub.use(served, monkeypatch, here)
        in_settings = Options(draft="builtin:draft", target="me/target:Q8_0", max_tokens=8)
        for policies in ("draft", "draft,arbitrage@0.5"):
            run = bench(here, replace(in_settings, policy=policies, explicit=frozenset({"policy"})))
    assert run.run.decided.router
    assert run.session.router.source == "builtin:builtin"
    assert run.run.decided.router.sha256 == need_router(run.session.router.router).sha256
    assert run.run.places["router"] == "builtin:builtin"


def test_a_preview_downloads_no_model(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the model, it is not known whether the run has it. A new run needs no model to be planned."""
    with fake_hub.running() as served:
        served.repos["me/draft"] = {"draft-Q8_0.gguf": (models_folder() / "draft.gguf").read_bytes()}
        fake_hub.use(served, monkeypatch, here)
        typed_now = typed(draft="me/draft:Q8_0", target="builtin:target", policy="draft", max_tokens=8)
        bench(here, typed(draft="builtin:draft", target="builtin:target", policy="draft", max_tokens=8))
        problems = ProblemOptions(dataset=str(here / "problems.jsonl"))

        def planned(folder: str) -> Plan:
            run = BenchOptions(output_folder=here / folder, dry_run=True)
            asked = ask_for_run(ask_to_compare, typed_now, problems, run, BENCH, is_preview=True)
            return plan_without_models(asked.request)

        assert isinstance(refused(planned, "run"), UsageError)
        assert [route.policy.name for route in planned("new").routes] == ["draft"]
        assert not served.downloads()


def test_a_model_that_no_policy_of_today_needs_may_be_gone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "MIN_PROBABILITY", {"turns": 0.0})  # the copy is asked as other models are
    prm = Path(shutil.copy(models_folder() / "prm.gguf", here / "prm.gguf"))
    options = {"draft": "builtin:draft", "target": "builtin:target", "max_tokens": 8}
    bench(here, typed(**options, prm=str(prm), policy="rsd,draft"))
    prm.unlink()
    run = bench(here, typed(**options, policy="entropy"))
    assert [route.policy.name for route in run.session.routes] == ["entropy"]
    assert len(rows_of(here / "run")) == 3 * len(QUESTIONS)


def test_settings_of_today_do_not_name_the_models_of_a_run(here: Path) -> None:
    """A pair was typed when the run began, and a settings file names other models."""
    bench(here, typed(pair="builtin", policy="draft", max_tokens=8))
    stop_after(2, here / "run" / "results.jsonl")
    set_today: dict[str, Any] = {
        "draft": "missing.gguf",
        "target": "scripted:target",
        "tau": "fast",
        "temperature": 0.9,
        "concurrency": 4,
    }
    again = bench(here, Options(**set_today))
    assert (len(rows_of(here / "run")), again.session.concurrency) == (4, 1)


def test_an_edited_pair_changes_nothing(here: Path) -> None:
    """Neither its system prompt and template variables, also of a model on a server, nor its policy, nor its checker that is gone."""
    with on_loopback(HashServer()) as address:
        target = replace(read_pairs()["builtin"].target, source=address)
        name_pair(target=target, system="Be brief.", chat_template_kwargs={"effort": "low"})
        options = typed(pair="mine", policy="target", max_tokens=8)
        solve(here, options)
        stop_after(2, here / "out.jsonl")
        name_pair(target=target, system="Be long.", chat_template_kwargs={"effort": "high"})
        solve(here, options)
    settings = [row["settings"] for row in rows_of(here, "out.jsonl")]
    assert {(one["system"], one["chat_template_kwargs"]["effort"]) for one in settings} == {("Be brief.", "low")}

    name_pair(policy="logprob@0.2")
    options = typed(pair="mine", tau="0.3", max_tokens=8)
    solve(here, options, output="tau.jsonl")
    stop_after(2, here / "tau.jsonl")
    name_pair(policy="target")
    solve(here, options, output="tau.jsonl")
    assert [(row["policy"], row["tau"]) for row in rows_of(here, "tau.jsonl")] == [("logprob", 0.3)] * 4

    name_pair(check=ModelEntry("builtin:draft"))
    solve(here, typed(pair="mine", policy="agree", max_tokens=8), output="checked.jsonl")
    stop_after(2, here / "checked.jsonl")
    name_pair(check=None)
    solve(here, typed(pair="mine", policy="agree", max_tokens=8), output="checked.jsonl")
    assert len(rows_of(here, "checked.jsonl")) == 4


def test_advice_names_the_settings_with_which_it_was_measured(here: Path) -> None:
    given = AdviceOptions(dataset=str(here / "problems.jsonl"), output_folder=here / "run", minutes=1.0)
    for values in ({"temperature": 0.8, "max_tokens": 32}, {}):
        made = advise_pair(typed(pair="builtin", **values), given, Shown())
        assert "--temperature 0.8" in made.command


def test_notes_of_the_beginning_do_not_return() -> None:
    name_pair(policy="target")
    for count in (1, 0):
        display = Shown()
        solve(Path(), typed(pair="mine"), display=display)
        assert sum("policy target: " in note for note in display.notes) == count
        stop_after(1, Path("out.jsonl"))


def test_a_call_uses_the_checker_of_the_pair() -> None:
    with open_pair(pair="builtin") as pair:
        solution = pair.solve("What is 5 + 6?", policy="agree")
    assert solution.check
    assert "check" in solution.check.answers


def test_a_folder_of_somebody_else_names_no_server(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cloned repository has a run in the folder that is used by default. Its server gets neither key nor question."""
    with on_loopback(server := HashServer()) as address:
        options = {"draft": "builtin:draft", "policy": "target", "max_tokens": 8}
        bench(here, typed(target=address, **options), output_folder=here / "runs" / "problems.jsonl--builtin")
        solve(here, typed(target=address, **options))
        for results in (here / "runs" / "problems.jsonl--builtin" / "results.jsonl", here / "out.jsonl"):
            stop_after(2, results)
        asked = sum(server.counts.values())
        monkeypatch.setenv("ARBITRAGE_API_KEY", "sk-secret")
        for given in ({}, {"pair": "builtin"}):
            for call, more in ((solve, {}), (bench, {"output_folder": here / "runs" / "problems.jsonl--builtin"})):
                error: Any = refused(call, here, typed(**given), **more)
                place = f"{error.message} {error.hint}"
                assert (error.option, address in place) == ("target", False), error
        assert sum(server.counts.values()) == asked


def test_an_impossible_option_in_run_json_is_damage(here: Path) -> None:
    bench(here, typed(**DRAFT))
    content = run_json(here / "run")
    content["asked"]["options"]["max_tokens"] = True
    (here / "run" / "run.json").write_text(json.dumps(content))
    assert isinstance(refused(bench, here, Options()), DamagedRunError)


MORE = (
    "41 + 2",
    "6 * 6",
    "80 - 7",
    "12 + 3 * 5",
    "54 - 9",
    "8 * 7",
    "23 + 39",
    "3 * 9",
    "71 - 6",
    "15 + 15",
    "7 * 7",
    "99 - 1",
)


def problems_of(folder: Path) -> set[str]:
    return set(run_json(folder / "run")["levels"])


@pytest.mark.parametrize("given", [{}, {"limit": "2"}])
def test_a_data_set_that_has_grown_does_not_change_the_sample_of_a_run(here: Path, given: dict[str, Any]) -> None:
    bench(here, typed(**DRAFT), limit="2")
    sample = problems_of(here)
    stop_after(1, here / "run" / "results.jsonl")
    write_problems(here / "problems.jsonl", QUESTIONS + MORE)
    bench(here, typed(**DRAFT), **given)
    assert problems_of(here) == sample == {row["id"] for row in rows_of(here / "run")}
    bench(here, typed(**DRAFT), limit="4")
    assert len(problems_of(here)) == 4
    assert problems_of(here) > sample


def test_a_data_set_that_has_grown_adds_to_a_run_of_all_its_problems(here: Path) -> None:
    bench(here, typed(**DRAFT))
    write_problems(here / "problems.jsonl", QUESTIONS + MORE)
    bench(here, typed(**DRAFT))
    assert len(rows_of(here / "run")) == len(QUESTIONS + MORE)


@pytest.mark.parametrize("added", [{"limit": "3-4"}, {"ids": "p3"}])
def test_problems_that_were_added_do_not_replace_those_of_the_run(here: Path, added: dict[str, Any]) -> None:
    bench(here, typed(**DRAFT), limit="1-2")
    stop_after(1, here / "run" / "results.jsonl")
    bench(here, typed(**DRAFT), **added)
    bench(here, typed(**DRAFT))
    assert {row["id"] for row in rows_of(here / "run")} == problems_of(here) >= {"p0", "p1", "p3"}


def test_an_advice_keeps_its_problems_when_the_data_set_grows(here: Path) -> None:
    given = AdviceOptions(dataset=str(here / "problems.jsonl"), output_folder=here / "run", minutes=1.0)
    options = typed(pair="builtin", max_tokens=8)
    write_problems(here / "problems.jsonl", [f"{number} + 5" for number in range(42)])
    advise_pair(options, given, Shown())
    drawn = problems_of(here)
    write_problems(here / "problems.jsonl", [f"{number} + 5" for number in range(160)])
    advise_pair(options, given, Shown())
    assert problems_of(here) == drawn


def test_options_of_the_beginning_do_not_exclude_a_policy_of_today(here: Path) -> None:
    bench(here, typed(policy="arbitrage@0.5", max_tokens=8))
    bench(here, typed(policy="target"))
    assert {row["policy"] for row in rows_of(here / "run")} == {"arbitrage", "target"}


@pytest.mark.parametrize("option", ["prm", "router", "check"])
def test_an_option_that_no_policy_of_the_run_uses_is_refused(here: Path, option: str) -> None:
    bench(here, typed(policy="target", max_tokens=8))
    stop_after(1, here / "run" / "results.jsonl")
    assert refused(bench, here, typed(**{option: "builtin:target"})).option == option


@pytest.mark.parametrize("call", [solve, bench])
def test_a_checker_does_not_join_a_policy_that_began_without(here: Path, call: Any) -> None:
    name_pair(check=None)
    results = here / ("out.jsonl" if call is solve else "run/results.jsonl")
    call(here, typed(pair="mine", policy="agree", max_tokens=24))
    stop_after(2, results)
    assert refused(call, here, typed(check="builtin:target")).option == "check"
    name_pair(check=ModelEntry("builtin:target"))
    call(here, typed(pair="mine"))
    compared = [one for row in rows_of(results.parent, results.name) for one in row["check"]["solutions"]]
    assert {one["model"] for one in compared} == {"draft"}


def test_a_router_that_no_policy_of_today_needs_may_be_gone(here: Path) -> None:
    router = write_router(here / "mine.safetensors")
    bench(here, typed(policy="arbitrage@0.5,draft", router=str(router), max_tokens=8))
    stop_after(2, here / "run" / "results.jsonl")
    router.unlink()
    bench(here, typed(policy="draft"))
    assert refused(bench, here, Options()).option == "router"
    assert len(rows_of(here / "run")) == 5


def test_a_run_that_another_process_extended_is_read_again(here: Path) -> None:
    """Otherwise, its problems would be forgotten, and their rows moved aside."""
    bench(here, typed(**DRAFT), limit="1-2")
    asked, given = asked_to_bench(here, typed(policy="draft"))
    bench(here, typed(**DRAFT), limit="3-4")
    refused(run_bench, session_of(asked.request), asked.selected, asked.path, given, asked.samples, Shown())
    assert problems_of(here) == {row["id"] for row in rows_of(here / "run")} == {"p0", "p1", "p2", "p3"}


def test_rewards_by_the_answers_of_the_target_are_remembered(here: Path) -> None:
    """The problems of today have known answers, but those of the run's beginning have none."""
    rows = [{"id": f"p{number}", "question": question} for number, question in enumerate(QUESTIONS)]
    write_rows(here / "problems.jsonl", [row | {"answer": "35"} if row["id"] == "p1" else row for row in rows])
    collect(here, typed(max_tokens=64))
    write_rows(here / "run" / "results.jsonl", [row for row in rows_of(here / "run") if row["id"] != "p1"])
    problems = ProblemOptions(dataset=str(here / "problems.jsonl"), limit="2-2")
    given = CollectOptions("rollout", here / "run")
    asked = ask_for_run(ask_to_collect, Options(explicit=frozenset({"limit"})), problems, given, COLLECT)
    with RunFolder(asked.path, kind=COLLECT) as folder, open_session(asked.request, Shown(), max_concurrency=1) as session:
        Collection(session, asked.selected, folder).collect()
    assert run_json(here / "run")["reward"] == {"kind": "rollout", "answers": "target"}


PROGRAM = {
    "task_id": "0",
    "prompt": 'def f():\n    """Return 1."""\n',
    "entry_point": "f",
    "test": "def check(f): assert f() == 1",
}


@pytest.mark.usefixtures("sandbox")
def test_protections_are_those_of_all_rows(here: Path) -> None:
    write_rows(here / "problems.jsonl", [PROGRAM | {"task_id": str(number)} for number in range(2)])
    for ways in (("unprotected", "sandboxed"), ("sandboxed", "unprotected")):
        for way in ways:
            problems = ProblemOptions(dataset=str(here / "problems.jsonl"), run_code=way)
            folder = here / "-".join(ways)
            given = BenchOptions(output_folder=folder)
            asked = ask_for_run(ask_to_compare, typed(**DRAFT), problems, given, BENCH)
            run_bench(session_of(asked.request), asked.selected, asked.path, given, 1, Shown())
            stop_after(1, folder / "results.jsonl")
        assert run_json(folder)["protections"] == ["resource limits"]


@pytest.mark.usefixtures("sandbox")
def test_protections_are_those_of_grading_again_too(here: Path) -> None:
    write_rows(here / "problems.jsonl", [PROGRAM])
    problems = ProblemOptions(dataset=str(here / "problems.jsonl"), run_code="sandboxed")
    asked = ask_for_run(ask_to_compare, typed(**DRAFT), problems, BenchOptions(output_folder=here / "run"), BENCH)
    run_bench(session_of(asked.request), asked.selected, asked.path, BenchOptions(), 1, Shown())
    assert "bubblewrap" in run_json(here / "run")["protections"]
    with RunFolder(here / "run") as folder:
        regrade(folder, permitted(CODE, "unprotected"))
    assert run_json(here / "run")["protections"] == ["resource limits"]


def test_the_questions_of_an_advice_are_found_from_another_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = AdviceOptions(dataset="problems.jsonl", output_folder=here / "run", minutes=1.0)
    advise_pair(typed(pair="builtin", max_tokens=8), given, Shown())
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    advise_pair(Options(), AdviceOptions(output_folder=here / "run", minutes=1.0), Shown())
    assert problems_of(here) == {f"p{number}" for number in range(len(QUESTIONS))}


def test_the_task_of_the_run_may_be_typed(here: Path) -> None:
    solve(here, typed(**DRAFT))
    stop_after(1, here / "out.jsonl")
    solve(here, typed(task="math"))
    assert len(rows_of(here, "out.jsonl")) == len(QUESTIONS)
    assert refused(solve, here, typed(task="free")).option == "task"
