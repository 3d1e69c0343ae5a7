"""What is decided from a command line and from facts about models and costs, without loading a model."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import MATH, SCRIPTED, Shown, refused, typed
from made_up_tuning import FAST_READER, NO_GAIN, SLOW_VERIFIER, make_tuned, unit_costs
from pairs_file import add_pair
from scripted_models import Continuation, ScriptedBackend
from small_routers import write_router

from arbitrage_cli.app.asking.naming import router_now
from arbitrage_cli.app.asking.request import Request, Use, ask, ask_to_collect, ask_to_compare
from arbitrage_cli.app.deciding.decide import available_router, decide, extend
from arbitrage_cli.app.deciding.gather import gather
from arbitrage_cli.app.entries.start import open_session
from arbitrage_cli.app.options import Options
from arbitrage_cli.costs.store import (
    Tuned,
    keep_tuned,
    machine_here,
    threads_without_costs,
    tuned_file,
)
from arbitrage_cli.errors import RouterError
from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.model_files.checksums import sha256_of
from arbitrage_cli.model_files.pairs import ModelEntry, find_files, read_pairs
from arbitrage_cli.problems.code import CODE_INSTRUCTIONS
from arbitrage_cli.problems.tasks import CODE, find_task
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.runs.run import Setup
from arbitrage_cli.system.machine import CACHED_BYTES
from arbitrage_cli.types import WRITING, ModelRole

PLAIN = Options(**SCRIPTED)
CHEAP_BATCHES = {"draft": unit_costs(0.2, 4.0, 16.0, prefill=0.01), "target": unit_costs(1.0, 1.0, 1.1, prefill=0.01)}
"""Costs at which batches make only the target cheaper."""


@pytest.fixture(autouse=True)
def _no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def options(*explicit: str, models: Options = PLAIN, **values: Any) -> Options:
    return replace(models, explicit=frozenset(explicit), **values)


def measured(costs: Mapping[str, UnitCosts]) -> Mapping[ModelRole, Tuned]:
    return {"draft": make_tuned(costs=costs["draft"]), "target": make_tuned(costs=costs["target"])}


def decided(request: Request, costs: Mapping[str, UnitCosts] | None = None) -> Setup:
    return decide(request, gather(request, measured(costs) if costs else None))


def single(*explicit: str, models: Options = PLAIN, costs: Mapping[str, UnitCosts] | None = None, **values: Any) -> Setup:
    return decided(ask(options(*explicit, models=models, **values), MATH), costs)


def test_a_pair_with_a_price_has_presets_by_price(tmp_path: Path) -> None:
    """The built-in router at prices: a cheap draft, and a target whose cached tokens cost a tenth."""
    pairs = tmp_path / "arbitrage" / "pairs.toml"
    pair = replace(read_pairs()["builtin"], name="mine", policy=None)
    draft, target = replace(pair.draft, price="0.02/0.01/0.10"), replace(pair.target, price="0.60/0.06/2.40")
    add_pair(pairs, replace(pair, draft=draft, target=target, check=ModelEntry("scripted:target", price="1/2")))
    request = ask(options("pair", models=Options(pair="mine"), tau="careful"), MATH)
    made = decided(request)
    router = available_router(request, router_now(request.named, MATH), made.unit_costs, made.price)
    assert (costs := router.costs) is not None
    assert (costs.target.decode, costs.write(), costs.target_reread) == (2.4, 2.4, 0.06)
    assert (costs.draft.decode, costs.draft_reread) == (0.1, 0.01)
    assert (made.price, made.tau_costs) == ("draft=0.02/0.01/0.10,target=0.60/0.06/2.40,check=1/2", "the pair's prices")
    safe = [row for row in router.table.rows if row.keeps(0.5)]
    assert made.route.tau == min(safe, key=lambda row: router.table.time(router.table.followed_row(row.tau)) or 0).tau


@pytest.mark.parametrize(("role", "name"), [("draft", "draft"), ("check", "checker")])
def test_a_price_without_one_of_the_target_is_not_used_and_noted(tmp_path: Path, role: str, name: str) -> None:
    pair = replace(read_pairs()["builtin"], name="mine", check=ModelEntry("scripted:target"))
    priced = replace(getattr(pair, role), price="0.02/0.10")
    add_pair(tmp_path / "arbitrage" / "pairs.toml", replace(pair, **{role: priced}))
    made = single("pair", models=Options(pair="mine"), policy="agree")
    (note,) = [note for note in made.notes if "price" in note]
    assert (made.price, f"the price of the {name} " in note) == (None, True)


@pytest.mark.parametrize(("router", "num_notes"), [(None, 1), ("builtin:universal", 0)])
def test_the_universal_router_is_noted_unless_it_was_named(router: str | None, num_notes: int) -> None:
    served = Options(draft="builtin:draft", target="http://127.0.0.1:1/v1")
    made = single(models=served, policy="arbitrage", router=router)
    assert sum("no router is set" in note for note in made.notes) == num_notes


def test_a_tau_keeps_the_policy_of_the_pair(tmp_path: Path) -> None:
    add_pair(
        tmp_path / "arbitrage" / "pairs.toml", replace(read_pairs()["builtin"], name="mine", policy="logprob", tau="0.3")
    )
    assert ask(typed(pair="mine", tau="0.5"), MATH).policies == [(POLICIES["logprob"], "0.5")]
    error = refused(ask, typed(pair="mine", tau="careful"), MATH)
    assert [name for name in ("logprob", "careful") if name not in f"{error.message} {error.hint}"] == []


@pytest.mark.parametrize(("tau", "found"), [(None, "0.3"), ("0.5", "0.5")])
def test_the_policy_of_a_pair_may_name_its_tau(tmp_path: Path, tau: str | None, found: str) -> None:
    mine = replace(read_pairs()["builtin"], name="mine", policy="random@0.3")
    add_pair(path := tmp_path / "arbitrage" / "pairs.toml", mine)
    assert ask(typed(pair="mine", **({"tau": tau} if tau else {})), MATH).policies == [(POLICIES["random"], found)]
    wrongs: list[dict[str, Any]] = [{"policy": "random@0.3", "tau": "0.4"}, {"policy": "target@0.3"}, {"policy": "randm"}]
    for wrong in wrongs:
        path.unlink()
        add_pair(path, replace(mine, **wrong))
        assert refused(ask, typed(pair="mine"), MATH).message.startswith("pair mine: ")


def test_a_checker_on_a_server_leaves_the_pair_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    models: dict[str, Any] = {"draft": "builtin:draft", "target": "builtin:target", "check": "http://127.0.0.1:1/v1"}
    assert ask(typed(**models, policy="speculative"), MATH, use="serve").asked == [POLICIES["speculative"]]
    assert ask_to_compare(typed(**models, policy="speculative,agree"), MATH).named.is_local
    assert POLICIES["speculative"] in ask_to_compare(Options(**models), MATH).asked
    served = models | {"draft": "http://127.0.0.1:2/v1"}
    assert "the draft is" in refused(ask, Options(**served, policy="speculative"), MATH).message


@pytest.mark.parametrize("use", ["chat", "serve"])
def test_a_router_may_be_named_for_another_policy_than_the_default(use: Use) -> None:
    options = typed(policy="target", router="builtin:universal")
    router = ask(options, MATH, use=use).named.router
    assert router
    assert router.source == "builtin:universal"
    assert refused(ask, options, MATH).option == "router"


def test_a_conversation_skips_policy_agree_of_the_pair_with_a_note(tmp_path: Path) -> None:
    add_pair(tmp_path / "arbitrage" / "pairs.toml", replace(read_pairs()["builtin"], policy="agree"))
    uses: list[tuple[Use, str, int]] = [("run", "agree", 0), ("chat", "arbitrage", 1)]
    for use, policy, num_skipped in uses:
        made = decided(ask(Options(), MATH, use=use), FAST_READER)
        assert made.route.policy.name == policy
        assert sum("is not used" in note for note in made.notes) == num_skipped


@pytest.mark.parametrize(
    ("use", "concurrency", "policy"), [("run", 1, "arbitrage"), ("run", 8, "target"), ("serve", 8, "arbitrage")]
)
def test_the_default_follows_the_costs_of_its_concurrency(use: Use, concurrency: int, policy: str) -> None:
    """Most of a server's time, there is one problem at a time."""
    request = ask(Options(concurrency=concurrency), MATH, use=use)
    made = decided(request, CHEAP_BATCHES)
    assert made.route.policy.name == policy
    assert sum(note.startswith(f"policy {policy}: ") for note in made.notes) == (policy != "arbitrage")


@pytest.mark.parametrize("policy", ["arbitrage", "random"])
def test_tau_above_every_score_is_refused(policy: str) -> None:
    assert refused(ask, typed(policy=policy, tau="130"), MATH).option == "tau"
    assert single("policy", "tau", models=Options(policy=policy), tau="1").route.tau == 1.0
    assert single("policy", "tau", models=Options(policy=policy), tau="inf").route.tau == math.inf


@pytest.mark.parametrize(
    ("policy", "given"),
    [
        ("target,draft", "router"),
        ("target", "reward"),
        ("draft", "prm"),
        ("target", "run_code"),
    ],
)
def test_flag_that_no_policy_of_a_benchmark_uses_is_refused(policy: str, given: str) -> None:
    asked = options("policy", given, models=Options(policy=policy))
    assert refused(ask_to_compare, asked, MATH).option == given
    if given == "reward":
        ask_to_compare(replace(asked, policy=f"{policy},oracle,entropy"), MATH, "rollout")


@pytest.mark.parametrize(("tau", "used"), [("fast", 1.0), ("0.4", 0.4)])
def test_a_tau_that_was_not_typed_is_used_if_it_applies(tau: str, used: float) -> None:
    assert single(policy="entropy", tau=tau).route.tau == used


CHECKED = {"policy": "agree", "check": "scripted:target"}


@pytest.mark.parametrize(
    ("values", "option", "words"),
    [
        ({"target": None}, None, "needs a target model"),
        ({"draft": ""}, "draft", "empty"),
        ({"tau": "high"}, "tau", "'high'"),
        ({"concurrency": 65}, "concurrency", "--concurrency 64"),
        ({"prm": "none.gguf"}, "prm", "policy entropy"),
        ({"policy": "rsd"}, None, "process reward model"),
        ({"policy": "arbitrage"}, None, "--router"),
        (CHECKED | {"task": "code"}, "policy", "code"),
        (CHECKED | {"policy": "draft"}, "check", "policy draft"),
        ({"policy": "target,magic"}, "policy", "magic"),
        ({"policy": "entropy,target@0.5"}, "policy", "no tau"),
    ],
    ids=str,
)
def test_a_request_that_cannot_be_answered_is_refused(values: dict[str, Any], option: str | None, words: str) -> None:
    asked, task = typed(**SCRIPTED | values), find_task(values.get("task"))
    error = refused(ask_to_compare if "," in (asked.policy or "") else ask, asked, task)
    assert (error.option, words in f"{error.message} {error.hint}") == (option, True), error


@pytest.mark.parametrize(("policy", "use"), [("rsd", "serve"), ("oracle", "serve"), ("rsd", "chat"), ("agree", "chat")])
def test_what_a_conversation_does_not_have_is_refused_before_models_are_chosen(policy: str, use: Use) -> None:
    error = refused(ask, typed(**SCRIPTED, policy=policy), MATH, use=use)
    assert (error.option, policy in error.message, policy in error.hint) == ("policy", True, False)


def test_a_process_reward_model_reads_thoughts_of_models_on_servers() -> None:
    """Its context is its own, because a server has the contexts of the others."""
    served = Options(draft="http://127.0.0.1:1/v1", target="http://127.0.0.1:2/v1", prm="builtin:prm", policy="rsd")
    sizes = {role: model.context_size for role, model in single("think", models=served, think="on").models.items()}
    assert sizes == {"draft": None, "target": None, "prm": 512}
    local = replace(served, draft="builtin:thinking-draft", target="builtin:thinking-target")
    assert {model.context_size for model in single("think", models=local, think="on").models.values()} == {1024}


def test_a_process_reward_model_is_used_by_collect_or_refused() -> None:
    assert refused(ask_to_collect, typed(prm="none.gguf"), MATH, "rollout").option == "prm"
    assert "process reward model" in refused(ask_to_collect, typed(**SCRIPTED), MATH, None).message


LIST = "target, entropy@0.3,entropy@inf,random@0.5,logprob,target,random@0.5"


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (PLAIN, ["target", "draft", "speculative", "entropy@1"]),
        (Options(), ["speculative", "arbitrage@careful"]),
        (replace(PLAIN, policy=LIST), ["target", "entropy@0.3", "entropy@inf", "random@0.5", "logprob@0.3"]),
    ],
    ids=["scripted", "built-in", "a list"],
)
def test_policies_of_a_benchmark(models: Options, names: list[str]) -> None:
    made = decided(ask_to_compare(models, MATH))
    assert [one.route.name for one in made.routes][-len(names) :] == names


def test_task_decides_prompt_and_steps(tmp_path: Path) -> None:
    """The routers that ship are for paragraphs."""

    def policies(request: Request) -> list[str]:
        return [one.policy for one in decided(request).routes]

    models = Options(draft="a.gguf", target="b.gguf")
    served = replace(models, target="http://127.0.0.1:1/v1")
    settings = decided(ask(models, CODE)).settings
    assert (settings.task, settings.system) == (CODE.name, CODE_INSTRUCTIONS)
    assert [ask(models, task).named.has_router for task in (CODE, MATH)] == [False, True]
    assert [policies(ask(one, CODE)) for one in (models, served)] == [["speculative"], ["target"]]
    assert policies(ask_to_compare(models, CODE)) == ["target", "draft", "speculative"]
    assert policies(ask_to_compare(served, CODE)) == ["target", "draft"]
    with pytest.raises(RouterError, match="a blank line"):
        ask(replace(models, router=str(write_router(tmp_path / "router.safetensors"))), CODE)


@pytest.mark.parametrize(
    ("values", "task", "words"),
    [
        ({"policy": "agree", "check": "scripted:target"}, "choice", "2.4 points"),
        ({"policy": "agree", "check": "scripted:draft"}, None, "--check"),
        ({"policy": "speculative", "concurrency": 2}, None, "one problem at a time"),
    ],
    ids=str,
)
def test_doubtful_uses_of_policies_are_noted(values: dict[str, Any], task: str | None, words: str) -> None:
    (note,) = decided(ask(replace(PLAIN, **values), find_task(task))).notes
    assert words in note


def test_an_added_policy_is_decided_with_the_costs_of_the_run(tmp_path: Path) -> None:
    router = str(write_router(tmp_path / "small.safetensors"))
    asked = ask_to_compare(Options(router=router, policy="arbitrage"), MATH)
    more = ask_to_compare(Options(router=router, policy="arbitrage@30%,arbitrage@fast"), MATH)
    began = decided(asked, FAST_READER)
    added = extend(began, more, gather(more, measured(SLOW_VERIFIER)))
    assert added.routes == [*began.routes, *(one for one in decided(more, FAST_READER).routes if one.route != began.route)]
    assert (added.models, added.settings) == (began.models, began.settings)


@pytest.mark.parametrize(
    ("threads", "gpu_layers", "free", "noted"),
    [(2, 0, 1, ["--threads 1"]), (2, 0, 2, []), (1, 0, 1, []), (2, 1, 1, ["--threads 1"]), (2, -1, 1, [])],
)
def test_a_busy_machine_is_noted_before_a_run_whose_models_compute_with_several_threads(
    monkeypatch: pytest.MonkeyPatch, threads: int, gpu_layers: int, free: int, noted: list[str]
) -> None:
    """Models with all layers on a GPU do not."""
    card = replace(ScriptedBackend("s", lambda *given: Continuation("", 1.0), LoadOptions()).card, threads=threads)
    monkeypatch.setattr(ScriptedBackend, "card", replace(card, gpu_layers=gpu_layers))
    monkeypatch.setattr("arbitrage_cli.app.deciding.prepare.free_cores", lambda: free)
    with open_session(ask(replace(PLAIN, policy="target"), MATH), shown := Shown()) as session:
        session.load()
    assert [words for words in noted if words in " ".join(shown.notes)] == noted
    assert len(shown.notes) == len(noted)


# --- by the costs of this machine


def test_each_model_runs_with_its_measured_threads_unless_an_option_says_otherwise(tmp_path: Path) -> None:
    """Measurements hold for one type of the KV cache and one GPU."""

    def threads(**values: Any) -> list[int | None]:
        made = single("policy", *values, models=Options(policy="arbitrage"), **values)
        return [made.models[role].threads for role in WRITING]

    default = threads()
    kept = [
        make_tuned(machine_here(), sha256_of(find_files(f"builtin:{role}")), count)
        for role, count in (("draft", 1), ("target", 2))
    ]
    keep_tuned(tuned_file(), kept)
    assert [threads(), threads(threads=2), threads(kv_type="q8_0")] == [[1, 2], [2, 2], default]
    tuned_file().unlink()
    keep_tuned(tuned_file(), [replace(one, machine=replace(one.machine, gpu="NVIDIA H100")) for one in kept])
    assert threads() == default


def test_named_taus_do_not_depend_on_a_stopwatch(tmp_path: Path) -> None:
    """By the costs of one of these machines, a tau of 0.6 would be faster."""
    router = str(write_router(tmp_path / "small.safetensors"))
    for costs in (FAST_READER, SLOW_VERIFIER, None):
        for values in ({}, {"tau": "careful"}):
            made = single("router", *values, models=Options(router=router), costs=costs, **values)
            assert (made.route.tau, made.tau_costs) == (0.3, "the router's card")


@pytest.mark.parametrize("asked", [{}, {"policy": "arbitrage"}, {"tau": "fast"}], ids=str)
def test_target_writes_alone_if_routing_gains_nothing_and_no_option_asks_for_it(asked: dict[str, Any]) -> None:
    assert single(models=Options(), costs=FAST_READER).route.policy.name == "arbitrage"
    made = single(*asked, models=Options(), costs=NO_GAIN, **asked)
    assert made.route.policy.name == ("arbitrage" if asked else "target")
    assert any(note.startswith("policy target: ") for note in made.notes) == (not asked)


def test_drafts_are_stopped_early_if_that_takes_less_time() -> None:
    """By the costs on the router's card, they take more."""
    for costs in (FAST_READER, NO_GAIN):
        routed = Options(policy="arbitrage", tau="0.02")
        assert not single("policy", "tau", models=routed, costs=costs).route.stops_early


@pytest.mark.parametrize(
    ("policy", "stops"), [("entropy", True), ("logprob-min", True), ("random", True), ("logprob", False), ("target", False)]
)
@pytest.mark.parametrize("models", [SCRIPTED, {}], ids=["without a router", "with a router"])
def test_drafts_are_stopped_early_if_that_changes_no_text(policy: str, stops: bool, models: dict[str, Any]) -> None:
    routed = Options(**models, policy=policy)
    assert single("policy", models=routed, costs=FAST_READER).route.stops_early is stops


def test_unmeasured_model_has_one_thread_if_it_fits_in_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arbitrage_cli.costs.store.default_threads", lambda: 8)
    large = tmp_path / "large.gguf"
    with large.open("wb") as file:
        file.truncate(CACHED_BYTES + 1)
    assert [threads_without_costs(one, LoadOptions()) for one in ("builtin:draft", str(large))] == [1, 8]
    assert threads_without_costs("builtin:draft", LoadOptions(threads=2)) == 2


@pytest.mark.parametrize(
    ("policy", "tau", "target_token", "check", "is_warned"),
    [
        ("speculative", None, 1.4, None, True),
        ("speculative", None, 8.0, None, False),
        ("agree", None, 2.0, None, True),
        ("agree", None, 4.0, None, False),
        ("agree", None, 2.0, "scripted:target", False),
        ("arbitrage", "0", 4.0, None, True),
        ("target", None, 1.4, None, False),
    ],
)
def test_a_policy_that_saves_nothing_at_these_costs_is_noted_before_it_starts(
    policy: str, tau: str | None, target_token: float, check: str | None, is_warned: bool
) -> None:
    costs = {"draft": unit_costs(1.0, 2.0, 9.0, prefill=0.1)}
    costs["target"] = UnitCosts(tuple(target_token * factor for factor in (1.0, 1.1, 1.2, 1.4, 2.0)), 0.1)
    router: dict[str, Any] = {"router": "builtin:universal"} if policy == "arbitrage" else {}
    made = single("policy", *router, policy=policy, tau=tau, check=check, costs=costs, **router)
    assert made.route.policy.name == policy
    assert any("policy target" in note for note in made.notes) is is_warned


@pytest.mark.parametrize(
    ("concurrency", "policy", "is_noted"), [(1, "speculative", False), (4, "speculative", True), (4, "entropy", False)]
)
def test_a_note_says_that_speculation_needs_one_problem_at_a_time(concurrency: int, policy: str, *, is_noted: bool) -> None:
    options = Options(policy=policy)
    made = single("policy", "concurrency", models=options, costs=FAST_READER, concurrency=concurrency)
    assert any("several problems" in note for note in made.notes) is is_noted
