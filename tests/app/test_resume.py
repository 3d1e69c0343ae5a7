"""A run that continues: it reads what was decided when it began, whatever has changed since then."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from commands import MATH, asked_to_bench, bench, refused, solve, typed
from fake_server import HashServer, on_loopback
from faults import rows_of, write_problems
from made_up_tuning import pretend, unit_costs
from pairs_file import add_pair
from small_routers import write_router

from arbitrage_cli.app.asking import resume
from arbitrage_cli.app.asking.request import Request, ask, ask_to_compare
from arbitrage_cli.app.asking.resume import Resumed, restore
from arbitrage_cli.app.deciding import plan as plans
from arbitrage_cli.app.deciding.decide import RequestFacts, decide
from arbitrage_cli.app.deciding.gather import gather
from arbitrage_cli.app.options import Options
from arbitrage_cli.costs.store import tuned_file
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.model_files.pairs import read_pairs
from arbitrage_cli.runs.folder import file_to_resume, run_to_resume
from arbitrage_cli.runs.records import BENCH
from arbitrage_cli.runs.run import Run, Setup

POLICIES = ("", "arbitrage@careful", "arbitrage@0.3", "arbitrage@40%", "speculative", "agree", "logprob")
PAIRS = ("local", "served", "priced")
CHANGES = ("costs", "default", "concurrency", "price", "policy", "longer", "settings")
QUESTIONS = ("31 + 12", "5 * 7", "14 - 9 + 3", "27 + 2 * 6", "63 - 8")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "arbitrage").mkdir()
    keep_costs(unit_costs(1.0, prefill=0.01))
    return tmp_path


def write_pair(home: Path, kind: str = "local", source: str = "", price: str = "0.6/2.4") -> None:
    """Write a pair with a router of its own. Its target is built in or served, and may have a price."""
    router = str(write_router(home / "router.safetensors"))
    built_in = read_pairs()["builtin"]
    target: dict[str, Any] = {"local": {}, "served": {"source": source}, "priced": {"source": source, "price": price}}[kind]
    pair = replace(built_in, name="mine", policy=None, router=router, target=replace(built_in.target, **target))
    (path := home / "arbitrage" / "pairs.toml").unlink(missing_ok=True)
    add_pair(path, pair)


def keep_costs(target: UnitCosts) -> None:
    """Store made-up costs of the built-in models, of which the draft's are fixed."""
    pretend(tuned_file(), {"draft": unit_costs(0.1, prefill=0.01), "target": target})


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with on_loopback(HashServer()) as address:
        yield address


@dataclass(frozen=True)
class Command:
    """`solve -o` or, if it `compares`, `bench`, in this process, on a file of problems."""

    home: Path
    compares: bool

    @property
    def path(self) -> Path:
        return self.home / ("run" if self.compares else "out.jsonl")

    @property
    def results(self) -> Path:
        return self.path / "results.jsonl" if self.compares else self.path

    @property
    def run(self) -> Run | None:
        return run_to_resume(self.path, BENCH) if self.compares else file_to_resume(self.path)

    def request(self, typed: Options) -> Request:
        resumed = Resumed(run, self.path, typed.explicit) if (run := self.run) else None
        (options,) = restore(resumed, typed)
        return ask_to_compare(options, MATH, None, resumed) if self.compares else ask(options, MATH, resumed)

    def __call__(self, typed: Options) -> list[dict[str, Any]]:
        """Run the command, and return the rows that are stored afterwards."""
        (bench if self.compares else solve)(self.home, typed)
        return rows_of(self.results.parent, self.results.name)

    def stop_after(self, count: int) -> None:
        lines = self.results.read_text().splitlines(keepends=True)
        self.results.write_text("".join(lines[:count]))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_continues_as_it_began(home: Path, quick_path: Path, policy: str, address: str) -> None:
    """Whatever has changed since then, or an error names the option that was changed: all pairs of two circumstances."""
    place = POLICIES.index(policy)
    for number, change in enumerate(CHANGES):
        pair = "local" if policy == "speculative" else PAIRS[(place + number) % 3]  # speculation needs both models here
        command = Command(quick_path / str(number), compares=bool(policy) and (place + number // 3) % 2 == 1)
        command.home.mkdir()
        write_problems(command.home / "problems.jsonl", QUESTIONS[:4])
        keep_costs(unit_costs(1.0, prefill=0.01))
        write_pair(home, pair, address)
        typed = typed_options(policy, (1, 8)[(place + number // 2) % 2], command)
        whole = command(typed)
        assert (begun := command.run)
        command.stop_after(count := (0, 2, 3, 4)[(place + number) % 4])
        changed = apply(change, home, typed, command)
        if count and change == ("concurrency" if command.compares else "policy"):
            assert refused(command, changed).option in ("concurrency", "policy", "tau")
            continue
        continued, run = command(changed), command.run
        assert {row["status"] for row in continued} == {"done"}
        assert len({(row["id"], row["policy"], row["tau"]) for row in continued}) == len(continued)
        added = 4 if change == "policy" and command.compares else change == "longer"
        assert len(continued) == 4 + added
        if run and count:  # without a result, no run has begun
            assert continued[:count] == whole[:count]
            texts = [{(row["id"], row["policy"], row["tau"]): row["text"] for row in rows} for rows in (whole, continued)]
            assert texts[0].items() <= texts[1].items()
            assert run.decided.routes[:1] == begun.decided.routes
            assert change == "policy" or run.decided == begun.decided


def typed_options(policy: str, concurrency: int, command: Command) -> Options:
    name, _, tau = policy.partition("@")
    routing: dict[str, Any] = {"policy": policy} if command.compares else {"policy": name or None, "tau": tau or None}
    explicit = frozenset({"pair", *(option for option, value in routing.items() if value)})
    return Options(pair="mine", concurrency=concurrency, max_tokens=48, explicit=explicit, **routing)


def apply(change: str, home: Path, typed: Options, command: Command) -> Options:
    """Make a change after a run began. Return what is typed now."""
    match change:
        case "costs":
            keep_costs(unit_costs(1.0, 8.0, 32.0, prefill=0.01))
        case "default":
            mine = read_pairs(path := home / "arbitrage" / "pairs.toml")["mine"]
            path.unlink()
            add_pair(path, replace(mine, policy="draft"))
        case "concurrency":
            return replace(typed, concurrency=5, explicit=typed.explicit | {"concurrency"})
        case "price":
            write_pair(home, "priced", command.request(typed).named.sources["target"], price="9/0.1")
        case "policy" if command.compares:
            return replace(typed, policy=f"{typed.policy},entropy@0.4")
        case "policy":
            return replace(typed, policy="entropy", tau="0.4", explicit=typed.explicit | {"policy", "tau"})
        case "longer":
            write_problems(command.home / "problems.jsonl", QUESTIONS)
        case "settings":
            return replace(typed, temperature=0.5, seed=3)  # from a settings file
    return typed


def test_a_benchmark_decides_presets_for_one_problem_at_a_time(home: Path) -> None:
    write_pair(home)
    keep_costs(unit_costs(1.0, 1.0, 1.1, prefill=0.01))  # batches make the target cheaper
    policies = "arbitrage@careful,arbitrage@balanced,arbitrage@fast"
    options = Options(pair="mine", policy=policies, explicit=frozenset({"pair", "policy"}))
    one, several = (ask_to_compare(replace(options, concurrency=count), MATH) for count in (None, 8))
    assert decide(one, gather(one)).routes == decide(several, gather(several)).routes
    alone = [ask(replace(options, policy="arbitrage", tau=tau), MATH) for tau in ("careful", "balanced", "fast")]
    assert {decide(one, gather(one)).route for one in alone} == {one.route for one in decide(one, gather(one)).routes}


def test_presets_that_meet_are_one_row_with_a_note(home: Path) -> None:
    write_pair(home)
    keep_costs(unit_costs(1.0, 8.0, 32.0, prefill=0.01))
    options = Options(pair="mine", policy="target,arbitrage@careful,arbitrage@balanced,arbitrage@fast")
    request = ask_to_compare(options, MATH)
    decided = decide(request, gather(request))
    taus = Counter(one.tau for one in decided.routes)
    met = 4 - len(decided.routes)
    assert set(taus.values()) == {1}
    assert sum("the same tau" in note for note in decided.notes) == met


@pytest.mark.parametrize("compares", [False, True], ids=["solve", "bench"])
def test_a_command_decides_once(quick_path: Path, monkeypatch: pytest.MonkeyPatch, compares: bool) -> None:
    counted = list[Request]()

    def counting(request: Request, facts: RequestFacts) -> Setup:
        counted.append(request)
        return decide(request, facts)

    monkeypatch.setattr(plans, "decide", counting)
    command, typed = Command(quick_path, compares), Options(draft="scripted:draft", target="scripted:target")
    write_problems(quick_path / "problems.jsonl", QUESTIONS)
    for _ in range(2):
        command(typed)
        assert len(counted) == 1
        command.stop_after(2)


# --- each option is restored

RESTORED: dict[str, Any] = {
    "seed": 7, "limit": "2", "samples": 2, "max_step_tokens": 16, "task": "choice", "temperature": 0.8, "top_p": 0.9,
    "max_tokens": 24, "ctx": 512, "system": "Add.",
}  # fmt: skip
OF_BENCH = ("limit", "samples")


def planned(folder: Path, **values: Any) -> Any:
    """What a benchmark would do: its problems with their title, samples and plan."""
    own = {name: values.pop(name) for name in OF_BENCH if name in values}
    asked, _ = asked_to_bench(folder, typed(draft="builtin:draft", policy="draft", **values), **own)
    plan = plans.plan_without_models(replace(asked.request, advises=True))
    problems = [item.problem.id for item in asked.selected.items]
    return (
        problems,
        asked.selected.title,
        asked.samples,
        plan.concurrency,
        plan.task.name,
        plan.solve_command.line("draft", None),
    )


@pytest.mark.parametrize("option", RESTORED)
def test_each_option_of_a_run_is_restored(quick_path: Path, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    """The problems and the settings are those of the run. Without this option, they are not."""
    write_problems(quick_path / "problems.jsonl", QUESTIONS)
    given = {"temperature": 0.5, "limit": "3"} | {option: RESTORED[option]}
    own: dict[str, Any] = {name: value for name, value in given.items() if name in OF_BENCH}
    shared = {name: value for name, value in given.items() if name not in OF_BENCH}
    bench(quick_path, typed(draft="builtin:draft", policy="draft", **shared), **own)
    begun = planned(quick_path, **given)
    assert planned(quick_path) == begun

    monkeypatch.setattr(resume, "NOT_ASKED", (*resume.NOT_ASKED, option))
    assert planned(quick_path) != begun


def test_rewards_are_those_of_the_run(quick_path: Path) -> None:
    write_problems(quick_path / "problems.jsonl", QUESTIONS[:1])
    bench(quick_path, typed(policy="oracle", max_tokens=8), reward="rollout")
    assert asked_to_bench(quick_path, Options())[0].request.reward == "rollout"
    assert refused(asked_to_bench, quick_path, Options(), reward="prm").option == "reward"
