"""Benchmarks on the problems of a file: what a run keeps, how a repeated request continues it, and what is refused."""

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from collected import write_run
from commands import SCRIPTED, Shown, asked_to_bench, bench, collect, refused, typed
from faults import results, rows_of, run_json, set_aside, write_problems
from made_up_runs import figures
from made_up_tuning import pretend, unit_costs

from arbitrage_cli.app.commands.bench import regrade
from arbitrage_cli.app.commands.preview import Preview, preview
from arbitrage_cli.app.deciding.plan import plan_without_models
from arbitrage_cli.app.options import Options
from arbitrage_cli.costs.pair import parse_prices
from arbitrage_cli.costs.store import tuned_file
from arbitrage_cli.display.run_facts import grade_change
from arbitrage_cli.errors import DamagedRunError, ModelFileError
from arbitrage_cli.evaluation import metrics
from arbitrage_cli.model_files.checksums import sha256_of
from arbitrage_cli.problems.math_grader import MathGrader
from arbitrage_cli.problems.tasks import MATH
from arbitrage_cli.runs.folder import RunFolder, encode, read_run_folder
from arbitrage_cli.types import Cost

QUESTIONS = ("37 * 12 - 95", "1 + 1", "9 * 9")  # the draft gets the first one wrong
THREE = {**SCRIPTED, "policy": "target,draft,entropy"}


@pytest.fixture
def here(quick_path: Path) -> Path:
    write_problems(quick_path / "problems.jsonl", QUESTIONS)
    return quick_path


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "run").iterdir() if path.name != "lock"}


def change(folder: Path, name: str, value: object, *parents: str) -> None:
    """Change a field of run.json."""
    made = place = run_json(folder / "run")
    for parent in parents:
        place = place[parent]
    place[name] = value
    (folder / "run" / "run.json").write_bytes(encode(made))


# --- what a run may be continued with


def test_samples_and_policies_may_be_added(here: Path) -> None:
    bench(here, typed(**THREE))
    before = files_of(here)["results.jsonl"]
    bench(here, typed(**SCRIPTED, policy="target,random@0.5"), samples=2, limit="1", display=(shown := Shown()))
    assert "adds 1 policy to a run with 3" in shown.notes
    assert files_of(here)["results.jsonl"].startswith(before)
    added = rows_of(here / "run")[9:]
    assert sorted((row["policy"], row["sample"]) for row in added) == [("random", 0), ("random", 1), ("target", 1)]
    made = run_json(here / "run")
    assert (made["samples"], [*made["levels"]], made["dataset"]["count"]) == (2, ["p0", "p1", "p2"], 3)
    assert [one["policy"] for one in made["decided"]["routes"]] == ["target", "draft", "entropy", "random"]


def test_fewer_problems_or_samples_do_not_shrink_a_run(here: Path) -> None:
    bench(here, typed(**SCRIPTED, policy="draft", temperature=0.5), samples=2, limit="2")
    for added in ({"limit": "1"}, {"ids": "p1", "samples": 1}):
        bench(here, typed(**SCRIPTED, policy="random@0.5"), **added)
    assert len(bench(here, typed(**SCRIPTED)).attempts) == 8
    made = run_json(here / "run")
    assert (made["asked"]["options"]["limit"], made["asked"]["options"]["samples"], made["samples"]) == ("2", 2, 2)


def test_errors_are_tried_again_and_wrong_answers_are_not(here: Path) -> None:
    path = here / "problems.jsonl"
    path.write_text('{"id": "odd", "question": "who?", "answer": 1}\n' + path.read_text())
    assert [bench(here, typed(**THREE), limit=limit).num_errors for limit in ("1-2", "1-3", "2-2")] == [3, 3, 0]
    rows = rows_of(here / "run")
    assert [row["id"] for row in rows[6:]] == ["p1"] * 3 + ["odd"] * 3
    assert {row["id"] for row in rows if row["grade"] and row["grade"]["value"] == "incorrect"} == {"p0"}
    assert {"understand only" in row["error"] for row in rows if row["id"] == "odd"} == {True}


def test_a_policy_needs_its_models_and_no_others(here: Path) -> None:
    alone = {"draft": "scripted:draft"}
    assert [*bench(here, typed(**alone, policy="draft")).run.decided.models] == ["draft"]
    later = bench(here, typed(**SCRIPTED, policy="target")).run
    assert {*later.decided.models} == {"draft", "target"}
    assert "target" in later.warnings[0]


def test_several_at_once_make_the_same_rows_in_another_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    runs = [bench(here, typed(pair="scripted", concurrency=count), output_folder=None) for count in (1, 2)]
    assert [str(one.folder.path) for one in runs] == [f"runs/problems--scripted{end}" for end in ("", "--concurrency-2")]
    first, second = (results(rows_of(one.folder.path)) for one in runs)
    assert len(first) == 12
    assert {key: row for key, row in first.items() if key[2] != "speculative"} == second
    made = figures(runs[1].run.to_dict(), rows_of(runs[1].folder.path))
    assert (made["concurrency"], {one["measured_seconds_mean"] for one in made["policies"]}) == (2, {None})


def test_what_changes_no_answer_is_noted_and_in_the_rows(here: Path, tiny: Mapping[str, Path]) -> None:
    """Another processor, another llama.cpp or other threads. Models are identified by their files."""
    options = {"draft": str(tiny["draft"]), "policy": "draft", "ctx": 256, "max_tokens": 8}
    model = bench(here, typed(**options, threads=1), limit="1").run.decided.models["draft"]
    assert (model.name, model.size) == (tiny["draft"].name, tiny["draft"].stat().st_size)
    assert (model.sha256, model.context_size) == (sha256_of([tiny["draft"]]), 256)
    change(here, "cpu", "slide rule", "decided", "machine")
    change(here, "llama_cpp_python", "0.0", "decided", "machine")
    bench(here, typed(**options, threads=2), limit="3")
    first, *others = rows_of(here / "run")
    assert "conditions" not in first
    assert {tuple(row["conditions"]) for row in others} == {("cpu", "llama_cpp_python", "threads")}
    assert sum("slide rule" in one or "0.0" in one for one in run_json(here / "run")["warnings"]) == 2


def test_a_run_without_model_files_depends_on_no_machine_but_on_the_version(here: Path) -> None:
    bench(here, typed(**THREE))
    change(here, "cpu", "slide rule", "decided", "machine")
    change(here, "tool", "0.0")
    (warning,) = bench(here, typed(**THREE), samples=2).run.warnings
    assert " 0.0 and " in warning
    assert not any("conditions" in row for row in rows_of(here / "run"))


def test_an_attempt_without_time_is_an_error(here: Path) -> None:
    run = bench(here, typed(policy="target", threads=1), timeout=0.001)
    assert run.num_errors == 3
    assert {"not finished after" in row["error"] for row in rows_of(here / "run")} == {True}


@pytest.mark.parametrize("concurrency", [1, 2])
def test_no_policy_pays_for_the_prompt_that_all_share(here: Path, concurrency: int) -> None:
    """Each sample reads as many prompt tokens as any other one, the first included."""
    options = {**SCRIPTED, "policy": "target,draft", "temperature": 0.1, "concurrency": concurrency}
    bench(here, typed(**options), samples=3)
    read = defaultdict[tuple[str, str], set[int]](set)
    for row in rows_of(here / "run"):
        read[row["policy"], row["id"]].add(row["timing"][row["policy"]]["prefill_tokens"])
    assert {len(counts) for counts in read.values()} == {1}


# --- what is refused


@pytest.mark.parametrize(("option", "value"), [("temperature", 0.5), ("draft", "scripted:target"), ("concurrency", 2)])
def test_another_setting_is_refused_by_name(here: Path, option: str, value: object) -> None:
    """Also by a preview, unless the run starts over."""
    bench(here, typed(**THREE))
    before, other = files_of(here), typed(**THREE | {option: value})
    assert [refused(call, here, other).option for call in (bench, planned)] == [option] * 2
    assert planned(here, other, fresh=True) == (9, 9)
    assert files_of(here) == before


def planned(folder: Path, options: Options, **chosen: Any) -> tuple[int, int]:
    """How many attempts are left, and how many there are."""
    found = previewed(folder, options, **chosen)
    return found.num_todo, found.num_attempts


def previewed(folder: Path, options: Options, **chosen: Any) -> Preview:
    asked, _ = asked_to_bench(folder, options, **chosen)
    return preview(plan_without_models(asked.request), asked.selected, asked.path, asked.samples)


def test_a_preview_counts_the_attempts_that_are_left_and_makes_nothing(here: Path) -> None:
    bench(here, typed(**THREE))
    before = files_of(here)
    assert [planned(here, typed(**THREE), samples=2), planned(here, typed(**THREE), output_folder=here / "other")] == [
        (9, 18),
        (9, 9),
    ]
    assert (files_of(here), (here / "other").exists()) == (before, False)


def test_time_in_a_preview_is_that_of_the_attempts_before(here: Path) -> None:
    """Attempts overlap if several problems are solved at once. The time of scripted models is unknown before the first attempt."""
    for concurrency in (1, 2):
        folder, options = here / str(concurrency), typed(**THREE, concurrency=concurrency)
        before = previewed(here, options, output_folder=folder)
        assert (before.seconds, len(before.unknown)) == (0.0, 3)
        bench(here, options, output_folder=folder)
        after = previewed(here, options, output_folder=folder, samples=3)
        total = sum(float(row["wall_seconds"]) for row in rows_of(folder))
        assert after.seconds == pytest.approx(2 * total / concurrency)
        assert not after.unknown


def test_time_in_a_preview_follows_from_token_costs_and_the_routers_table(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of 16 tokens takes as long as one token, or 16 times as long."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(here))
    seconds: dict[str, list[float]] = {}
    for name, costs in {"shared": unit_costs(0.1), "apart": unit_costs(0.1, few=4.0, many=16.0)}.items():
        pretend(tuned_file(), {"draft": costs, "target": costs})
        for concurrency in (1, 16):
            options = typed(policy="target,draft", draft="builtin:draft", target="builtin:target", concurrency=concurrency)
            found = previewed(here, options, output_folder=here / "new")
            assert not found.unknown
            seconds.setdefault(name, []).append(found.seconds)
    assert seconds["shared"][0] == pytest.approx(16 * seconds["shared"][1], rel=0.05)
    assert seconds["apart"] == pytest.approx([seconds["shared"][0]] * 2, rel=0.05)


def test_problems_are_named_by_their_ids(here: Path) -> None:
    bench(here, typed(**THREE), ids="p2")
    assert [row["id"] for row in rows_of(here / "run")] == ["p2"] * 3
    bench(here, typed(**THREE), ids="p0, p2")
    assert [row["id"] for row in rows_of(here / "run")] == ["p2"] * 3 + ["p0"] * 3
    assert run_json(here / "run")["levels"].keys() == {"p0", "p2"}
    before = files_of(here)
    assert refused(bench, here, typed(**THREE), ids="p0,p9").option == "ids"
    assert files_of(here) == before


def test_another_data_set_is_refused(here: Path) -> None:
    bench(here, typed(**THREE))
    path = here / "problems.jsonl"
    text = path.read_text()
    for edited in (text.split("\n", 1)[1], text.replace("349", "350"), text.replace("9 * 9", "9 * 8")):
        path.write_text(edited)
        error = refused(bench, here, typed(**THREE))
        assert (error.option, error.message.count("sha256 ")) == ("dataset", 2)


def test_a_folder_that_cannot_be_used_is_refused_before_any_model_is_opened(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "file").touch()
    missing = typed(target="nowhere.gguf", policy="target")
    for folder in (here / "file", here / "file" / "run", Path("/proc/run")):
        assert "cannot be used for a run" in refused(bench, here, missing, output_folder=folder).message
    with RunFolder(here / "run"):
        assert "another process" in refused(bench, here, missing).message
    real = os.open

    def read_only(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(30, "Read-only file system")
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", read_only)
    assert "Read-only" in refused(bench, here, missing).message


def test_a_model_that_does_not_exist_is_no_defect(here: Path) -> None:
    for call in (bench, collect):
        assert refused(call, here, typed(draft="no.gguf", target="no.gguf")).exit_code == 3
    assert not (here / "run").exists()


def test_rows_without_run_json_are_refused_until_a_fresh_start(here: Path) -> None:
    bench(here, typed(**THREE))
    (here / "run" / "run.json").unlink()
    with pytest.raises(DamagedRunError, match=r"run/run\.json ") as raised:
        bench(here, typed(**THREE))
    assert raised.value.exit_code == 5
    bench(here, typed(**THREE), fresh=True)
    assert set_aside(here / "run") == ["results.jsonl.old-1"]


def test_a_run_of_another_command_is_refused(here: Path) -> None:
    write_run(here / "states", ["1 + 1?"])
    bench(here, typed(**THREE))
    for call, options in ((bench, {"output_folder": here / "states"}), (collect, {})):
        assert "a run of arbitrage " in refused(call, here, typed(**SCRIPTED), **options).message


def test_questions_alone_are_enough_for_states_but_not_for_a_benchmark(here: Path) -> None:
    """Without a known answer the target's own is the one to reach: the scripted target is right, so the states are the same."""
    path, found = here / "problems.jsonl", list[Any]()
    for answers in (None, "target"):
        assert collect(here, typed(**SCRIPTED)).run.reward == {
            "kind": "rollout",
            **({"answers": answers} if answers else {}),
        }
        rows = sorted(rows_of(here / "run"), key=lambda row: str(row["id"]))
        found.append([[(one["draft_reward"], one["target_reward"]) for one in row["states"]] for row in rows])
        shutil.rmtree(here / "run")
        path.write_text(path.read_text().replace('"answer"', '"unknown"'))
    assert found[0] == found[1]
    assert all(found[0])
    assert "answer" in refused(bench, here, typed(**THREE)).message


# --- grading again


def test_another_grader_is_refused_until_the_run_is_graded_again(here: Path) -> None:
    """Without models. Only wrong grades are replaced."""
    bench(here, typed(**THREE))
    before = files_of(here)
    wrong = {"value": "unscored", "answer": None, "explanation": "the grader was not there"}
    rows = [row | {"grade": wrong} if row["id"] == "p0" else row for row in rows_of(here / "run")]
    (here / "run" / "results.jsonl").write_bytes(b"".join(map(encode, rows)))
    change(here, "grader", "older")
    error = refused(bench, here, typed(**THREE), samples=2)
    assert "grader changed from older" in error.message
    assert f"arbitrage report {here}/run --regrade" in error.hint
    with RunFolder(here / "run") as folder:
        changes = regrade(folder, MATH)
        assert [": was unscored, now " in grade_change(*one) for one in changes] == [True] * 3
        assert regrade(folder, MATH) == []
    assert files_of(here) == before
    bench(here, typed(**THREE))


@pytest.mark.parametrize("first", ["draft,entropy", "target"])
def test_answers_are_compared_whenever_the_targets_arrive(here: Path, first: str) -> None:
    """Answers without a grade. The rows and the results are as if all policies had been run at once."""
    free = {**SCRIPTED, "task": "free"}
    bench(here, typed(**free, policy="target,draft,entropy"), output_folder=here / "once")
    at_once = {key: row.get("same_as_target") for key, row in results(rows_of(here / "once")).items()}
    assert {False, True} <= {*at_once.values()}
    bench(here, typed(**free, policy=first))
    later = bench(here, typed(**free, policy="target,draft,entropy"))
    assert {key: row.get("same_as_target") for key, row in results(rows_of(here / "run")).items()} == at_once
    assert {(one.key[0], 0, one.route.policy.name): one.same_as_target for one in later.results} == {
        key[:3]: same for key, same in at_once.items()
    }


@pytest.mark.parametrize("concurrency", [1, 4])
def test_rollouts_are_billed_and_timed(here: Path, concurrency: int) -> None:
    """The price and the time of the oracle include the target's steps that only rate other steps."""
    bench(here, typed(**SCRIPTED, policy="oracle", concurrency=concurrency), reward="rollout")
    contents = read_run_folder(here / "run")
    (oracle,) = metrics.figures(contents.run, contents.results, prices=parse_prices("target=0/1")).policies
    prices, seconds = list[int](), list[float]()
    for row in contents.rows:
        written = [one for step in row.steps for one in (step, step.discarded) if one and one.model == "target"]
        costs = [*(one.cost for one in written), *row.rollouts]
        assert len(row.rollouts) > 0
        assert row.timing.target == sum(costs, Cost())
        prices.append(row.timing.target.decode_tokens + row.timing.target.verify_kept)
        seconds.append(row.seconds)
    assert oracle.price
    assert oracle.price.value == pytest.approx(sum(prices) / 3e6)
    assert oracle.seconds_mean
    assert (oracle.seconds_mean.value or 0.0) >= sum(cost.seconds for row in contents.rows for cost in row.rollouts) / 3


# --- a model that changes


@pytest.fixture
def model(here: Path, tiny: Mapping[str, Path]) -> Path:
    return Path(shutil.copy(tiny["draft"], here / "model.gguf"))


def alter(model: Path) -> None:
    with model.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"!")


@pytest.mark.parametrize("call", [bench, collect])
def test_a_model_that_is_changed_while_it_is_used_is_noticed_at_the_end(
    here: Path, model: Path, call: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"draft": str(model), "max_tokens": 4, "threads": 1, "concurrency": 1}
    options |= {"policy": "draft"} if call is bench else {"target": str(model)}
    grade = MathGrader.grade

    def altering(*arguments: Any) -> Any:
        alter(model)
        return grade(*arguments)

    monkeypatch.setattr(MathGrader, "grade", altering)
    with pytest.raises(ModelFileError, match="changed while"):
        call(here, typed(**options))
    assert refused(call, here, typed(**options)).option == "draft"


def test_a_finished_run_reads_no_model_that_is_unchanged(here: Path, model: Path) -> None:
    """Another byte with the old size, mtime and inode is not seen, as nothing is computed with it; with a new mtime it is."""
    options = typed(draft=str(model), policy="draft", max_tokens=4, threads=1)
    bench(here, options)
    before = model.stat()
    alter(model)
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert bench(here, options, display=(shown := Shown())).todo == []
    assert shown.results == []
    os.utime(model)
    error = refused(bench, here, options)
    assert (error.option, "changed" in error.message) == ("draft", True)
