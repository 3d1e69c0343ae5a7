"""Advice: what it says if attempts took these seconds, and which attempts it makes. Most attempts are made up."""

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import MATH, SCRIPTED, Shown, bench, refused, typed
from faults import rows_of, write_problems
from made_up_attempts import AGREE_PAYS, CAREFUL_PAYS, NOTHING_PAYS, Attempts, made_up_attempts
from made_up_tuning import FAST_READER, pretend, unit_costs
from pairs_file import add_pair

from arbitrage_cli.app.asking.locate import card_of_run
from arbitrage_cli.app.asking.naming import choose_models
from arbitrage_cli.app.commands.advise import Advice
from arbitrage_cli.app.entries.ask_advice import advice_folder, advise_pair
from arbitrage_cli.app.options import AdviceOptions, Options
from arbitrage_cli.costs.store import tuned_file
from arbitrage_cli.errors import UsageError
from arbitrage_cli.evaluation.metrics import figures
from arbitrage_cli.model_files.pairs import read_pairs, router_file
from arbitrage_cli.problems.datasets import load_dataset
from arbitrage_cli.problems.tasks import Task, find_task
from arbitrage_cli.runs.folder import read_run_folder

ROUTER = "my router.safetensors"
GIVEN: dict[str, Any] = {
    "pair": "builtin",
    "offline": True,
    "router": ROUTER,
    "max_tokens": 8,
    "temperature": 0.5,
    "ctx": 2048,
}
SERVER = "http://127.0.0.1:1/v1"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    pretend(tuned_file(), FAST_READER)
    shutil.copy(router_file("builtin:builtin"), ROUTER)
    return tmp_path


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> Attempts:
    return made_up_attempts(monkeypatch)


def advised(
    options: Options,
    output: str | None = "run",
    display: Shown | None = None,
    dataset: str | None = None,
    mapping: str | None = None,
) -> Advice:
    given = AdviceOptions(dataset, mapping=mapping, output_folder=Path(output) if output else None, minutes=1.0)
    return advise_pair(options, given, display or Shown())


@pytest.mark.parametrize(
    ("seconds", "policy"),
    [(CAREFUL_PAYS, ["--policy", "arbitrage", "--tau", "careful"]), (NOTHING_PAYS, ["--policy", "target"])],
    ids=["worth it", "not worth it"],
)
def test_the_command_solves_as_was_measured(attempts: Attempts, seconds: Mapping[str, float], policy: list[str]) -> None:
    """With the router that was given, if it is needed, and all that was given of how steps are written."""
    attempts(20, seconds)
    made = advised(typed(**GIVEN))
    routed = "--tau" in policy
    assert (made.policy, made.tau, made.verdict.confidence is not None) == (policy[1], "careful" if routed else None, True)
    given = typed(**{name: value for name, value in GIVEN.items() if routed or name != "router"}).arguments
    command = shlex.split(made.command)
    assert (command[:2], sorted(command[2:])) == (["arbitrage", "solve"], sorted([*given, *policy, "PROBLEM"]))


@pytest.mark.parametrize("seconds", [AGREE_PAYS, CAREFUL_PAYS, NOTHING_PAYS], ids=["agree", "arbitrage", "target"])
def test_the_command_names_the_checker_if_the_policy_uses_it(attempts: Attempts, seconds: Mapping[str, float]) -> None:
    """Also if it was named only when the run began."""
    attempts(20, seconds)
    models = {"draft": "builtin:draft", "target": "builtin:target"}
    for named in ({**models, "check": "builtin:draft"}, models, {}):
        made = advised(typed(**named))
        words = shlex.split(made.command)
        checker = words[words.index("--check") + 1] if "--check" in words else None
        assert (made.policy == "agree", checker) == (
            seconds is AGREE_PAYS,
            "builtin:draft" if seconds is AGREE_PAYS else None,
        )


@pytest.mark.parametrize(("count", "num_solved", "helps"), [(3, 3, False), (4, 2, False), (6, 2, True)])
def test_more_time_is_recommended_if_there_are_enough_problems(
    home: Path, attempts: Attempts, count: int, num_solved: int, helps: bool
) -> None:
    questions = write_problems(home / "some.jsonl", [f"{number} + 5" for number in range(count)])
    attempts(num_solved, CAREFUL_PAYS)
    made = advised(Options(), dataset=str(questions))
    assert (made.verdict.confidence, made.finished, made.minutes is not None) == (None, num_solved, helps)


def test_another_data_set_is_named_and_not_the_mapping_of_the_run(home: Path, attempts: Attempts) -> None:
    (home / "mapped.jsonl").write_text("".join(f'{{"q": "{number} + 5"}}\n' for number in range(4)))
    attempts(2, CAREFUL_PAYS)
    advised(Options(), dataset=str(home / "mapped.jsonl"), mapping="question=q")
    again = Options(explicit=frozenset({"dataset"}))
    assert refused(advised, again, dataset="builtin").option == "dataset"


def test_the_report_shows_the_figures_of_the_advice(attempts: Attempts) -> None:
    """Attempts that were skipped are not missing."""
    attempts(6, {"target": 1.0, "draft": 1.2})
    made = advised(Options())
    contents = read_run_folder(Path("run"))
    assert made.figures == figures(contents.run, contents.results, card_of_run(contents.run))
    assert (made.figures.n, any("missing" in note for note in made.figures.notes)) == (6, False)


def test_other_settings_begin_another_run(attempts: Attempts) -> None:
    attempts(1, CAREFUL_PAYS)
    for options in (Options(), Options(), typed(max_tokens=8)):
        advised(options, output=None)
    assert len([*Path("runs").iterdir()]) == 2


def folder_of(options: Options, task: Task = MATH) -> Path:
    return advice_folder(options, choose_models(options, task), task, load_dataset("builtin", offline=True))


def test_a_run_of_models_on_servers_is_named_without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arbitrage_cli.app.entries.ask_advice.machine_here", lambda: pytest.fail("llama.cpp is needed"))
    first, second = (Options(draft=SERVER, target=f"{SERVER}#{name}") for name in ("small", "large"))
    assert folder_of(first) != folder_of(second)


@pytest.mark.parametrize("task", ["math", "choice"])
def test_a_run_has_the_same_name_whether_an_option_or_the_data_set_names_its_task(task: str) -> None:
    assert folder_of(typed(task=task), find_task(task)) == folder_of(Options(), find_task(task))
    assert folder_of(Options(), find_task(task)) != folder_of(Options(), find_task("code"))


def test_a_benchmark_is_no_advice(home: Path, attempts: Attempts) -> None:
    """Neither command continues a run of the other, or changes it."""
    write_problems(home / "problems.jsonl", ["2 + 3"])
    options = typed(**SCRIPTED, policy="target")
    bench(home, options)
    before = (home / "run" / "run.json").read_bytes()
    assert isinstance(refused(advised, typed(**SCRIPTED)), UsageError)
    assert (home / "run" / "run.json").read_bytes() == before
    attempts(1, CAREFUL_PAYS)
    advised(Options(), output="advice")
    assert isinstance(refused(bench, home, options, output_folder=home / "advice"), UsageError)
    assert read_run_folder(home / "advice").run.skips_attempts


def test_the_target_solves_each_problem_first() -> None:
    """Then the other policies solve the same problem, so that their answers can be compared."""
    advised(typed(**SCRIPTED))
    by_problem = dict[str, list[str]]()
    for row in rows_of(Path("run")):
        by_problem.setdefault(row["id"], []).append(row["policy"])
    assert {policies[0] for policies in by_problem.values()} == {"target"}
    assert max(map(len, by_problem.values())) > 2


def test_a_pair_that_cannot_pay_gets_a_verdict_without_a_problem(home: Path) -> None:
    """The costs of tokens decide: a draft token takes nearly as long as a target token."""
    pretend(tuned_file(), {"draft": unit_costs(0.95, 4.0, 16.0, 0.1), "target": unit_costs(1.0, 4.0, 16.0, 0.1)})
    made = advised(typed(pair="builtin"), display=(shown := Shown()))
    assert (made.policy, made.figures.n, made.verdict.num_problems) == ("target", 0, 0)
    assert (made.verdict.confidence or 0) > 0.9
    assert made.figures.token_ratio.value == pytest.approx(1 / 0.95)
    assert {one.route.policy.name for one in made.bounds if one.is_certain} == {"speculative", "arbitrage", "agree"}
    assert not shown.results
    contents = read_run_folder(Path("run"))
    assert figures(contents.run, contents.results, card_of_run(contents.run)) == made.figures
    assert made.figures.notes == ()


def test_policies_that_cannot_pay_are_not_tried(attempts: Attempts) -> None:
    """Without a checker, the draft solves each problem three times, which takes as long as the target."""
    pretend(tuned_file(), {"draft": unit_costs(0.4, prefill=0.01), "target": unit_costs(1.0, 4.0, 16.0, prefill=0.01)})
    options = typed(draft="builtin:draft", target="builtin:target")
    made = advised(options, display=(shown := Shown()))
    assert {one.route.policy.name for one in made.bounds if one.is_excluded} >= {"agree", "speculative"}
    assert sum("not tried" in note for note in shown.notes) == sum(one.is_excluded for one in made.bounds)


def test_prices_decide_as_token_costs_do(home: Path) -> None:
    """A pair whose draft costs as much as its target needs no problem."""
    pair = read_pairs()["builtin"]
    draft, target = replace(pair.draft, price="0.5/1"), replace(pair.target, price="0.5/1")
    add_pair(home / "arbitrage" / "pairs.toml", replace(pair, name="dear", policy=None, draft=draft, target=target))
    made = advised(typed(pair="dear"))
    assert (made.policy, made.verdict.basis, made.verdict.is_by_bounds, made.figures.n) == ("target", "price", True, 0)


def test_an_attempt_that_ends_at_the_limit_of_the_advice_is_no_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arbitrage_cli.app.commands.advise.LONGEST", 0.0)
    questions = write_problems(home / "some.jsonl", ["7 + 5", "12 + 5"])
    made = advised(typed(draft="scripted:draft", target="scripted:target"), dataset=str(questions))
    assert (made.num_errors, made.figures.n) == (0, 0)


def test_advice_is_based_on_a_sample_of_all_questions(home: Path, attempts: Attempts) -> None:
    """They may be sorted, here by difficulty."""
    questions = write_problems(home / "some.jsonl", [f"{1 + number} + 7" for number in range(80)])
    attempts(40, NOTHING_PAYS)
    made = advised(typed(**GIVEN), dataset=str(questions))
    assert (made.figures.dataset_size, made.figures.n <= 40) == (80, True)
    assert {int(row["id"][1:]) > 40 for row in rows_of(Path("run"))} == {True, False}
