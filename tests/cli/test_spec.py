"""`Spec`: a command line, resolved without loading a model."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from cli import pair_named_mine
from small_routers import write_router

from arbitrage_cli.app.model_choice import NamedModels, choose_models
from arbitrage_cli.app.options import (
    BenchRoutingOptions,
    CollectOptions,
    GenerationOptions,
    MachineOptions,
    ModelOptions,
    RoutingOptions,
)
from arbitrage_cli.app.request import RunOptions, ask, ask_to_collect, ask_to_compare
from arbitrage_cli.app.spec import Run, Spec, advised_pair, make_spec
from arbitrage_cli.costs.placement import tuned_file
from arbitrage_cli.costs.store import StoredAdvice, keep_advice
from arbitrage_cli.errors import UsageError
from arbitrage_cli.model_files.checksums import sha256_of, unchanged_sha256
from arbitrage_cli.model_files.facts import read_facts
from arbitrage_cli.model_files.pairs import read_pairs, router_file, save_pair
from arbitrage_cli.problems.tasks import find_task

SCRIPTED = ModelOptions(draft="scripted:draft", target="scripted:target")


@pytest.fixture(autouse=True)
def _no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def options(models: ModelOptions = SCRIPTED, *explicit: str) -> RunOptions:
    return RunOptions(models, GenerationOptions(), MachineOptions(), find_task(None), explicit=frozenset(explicit))


def resolved(
    options: RunOptions, asked: RoutingOptions | BenchRoutingOptions | CollectOptions, earlier: Run | None = None
) -> Spec:
    match asked:
        case BenchRoutingOptions():
            request = ask_to_compare(options, asked)
        case CollectOptions():
            request = ask_to_collect(options, asked)
        case RoutingOptions():
            request = ask(options, asked)
    return make_spec(request, earlier)


def chosen(models: ModelOptions) -> NamedModels:
    return choose_models(frozenset(), models, MachineOptions(), find_task(None))


def columns(spec: Spec) -> list[tuple[str, float | None]]:
    return [(route.policy.name, route.tau) for route in spec.routes]


def test_nothing_given_is_the_built_in_pair_with_its_router() -> None:
    spec = resolved(options(ModelOptions()), RoutingOptions())
    assert spec.sources == {"draft": "builtin:draft", "target": "builtin:target"}
    assert spec.deciding_router is not None
    assert (spec.route.policy.name, spec.route.tau) == ("arbitrage", spec.available_router.table.resolve("careful"))
    assert spec.request.concurrency == "1"


def test_models_named_one_by_one_replace_those_of_the_default_pair() -> None:
    spec = resolved(options(ModelOptions(draft="a.gguf", target="b.gguf")), RoutingOptions())
    assert (spec.request.named.pair, spec.available_router.source) == (None, "builtin:universal")


def test_a_pair_with_a_price_has_presets_by_price(tmp_path: Path) -> None:
    """The built-in router at prices: a free draft, and a target whose cached tokens cost a tenth."""
    mine = ModelOptions(pair="mine")
    pairs = tmp_path / "arbitrage" / "pairs.toml"
    pair = replace(read_pairs()["builtin"], name="mine", policy=None)
    save_pair(pairs, replace(pair, target=replace(pair.target, price="0.60/0.06/2.40")))
    spec = resolved(options(mine, "pair"), RoutingOptions(tau="careful"))
    costs = spec.available_router.costs
    assert costs is not None
    assert (costs.target_seconds_per_token, costs.write, costs.target_cached_seconds_per_token) == (2.4, 2.4, 0.06)
    assert (spec.request.named.price, spec.tau_costs) == ("target=0.60/0.06/2.40", "the pair's prices")
    table = spec.available_router.table
    assert spec.route.tau == min((row for row in table.rows if row.keeps(0.5)), key=lambda row: table.time(row) or 0).tau


def test_files_of_a_known_pair_have_its_router_whatever_their_names(tmp_path: Path) -> None:
    for role in ("draft", "target"):
        shutil.copy(router_file(f"builtin:{role}").with_suffix(".gguf"), tmp_path / f"my-{role}.gguf")
    mine, draft = (str(tmp_path / f"my-{role}.gguf") for role in ("target", "draft"))
    known = chosen(ModelOptions(draft=draft, target=mine))
    other = chosen(ModelOptions(draft=draft, target=draft))
    assert (known.router_source, other.router_source) == ("builtin:builtin", "builtin:universal")


def test_files_of_a_pair_of_the_users_have_its_router(tmp_path: Path, tiny: Mapping[str, Path]) -> None:
    """A pair whose router is not there changes nothing; a model of another name is not even read."""
    files = {role: tiny[role] for role in ("draft", "target")}
    facts = {role: {"name": read_facts([file]).name, "sha256": sha256_of([file])} for role, file in files.items()}
    router = tmp_path / "mine.safetensors"
    pair_named_mine(tmp_path, draft="old-name.gguf", target=files["target"], router=router)
    named = ModelOptions(draft=str(files["draft"]), target=str(files["target"]))
    assert chosen(named).router_source == "builtin:universal"
    write_router(router, pair=facts)
    assert chosen(named).router_source == str(router)
    write_router(router, pair=facts, data={"step_end": {"separator": "\n", "min_chars": 1}})  # of code
    assert chosen(named).router_source == "builtin:universal"
    write_router(router, pair={role: {**one, "sha256": "0" * 64} for role, one in facts.items()})
    assert chosen(named).router_source == "builtin:universal"
    unread = Path(shutil.copy(files["draft"], tmp_path / "new.gguf"))
    write_router(router, pair={role: {**one, "name": "another"} for role, one in facts.items()})
    chosen(replace(named, draft=str(unread)))
    assert unchanged_sha256([unread]) is None


@pytest.mark.parametrize(("route", "policy", "num_notes"), [("draft", "draft", 1), ("speculative", "arbitrage", 2)])
def test_advice_on_a_model_on_a_server_is_found_by_its_address(route: str, policy: str, num_notes: int) -> None:
    """Speculation needs both models on this machine, so such an advice is ignored."""
    served = options(ModelOptions(draft="builtin:draft", target="http://127.0.0.1:1/v1"))
    before = resolved(served, RoutingOptions())
    keep_advice(tuned_file(), StoredAdvice(advised_pair(before.request), route, "2026-11-29T12:00:00+00:00"))
    after = resolved(served, RoutingOptions())
    other = resolved(options(ModelOptions(draft="builtin:draft", target="http://127.0.0.1:2/v1")), RoutingOptions())
    assert (before.route.policy.name, other.route.policy.name) == ("arbitrage", "arbitrage")
    assert (after.route.policy.name, len(after.notes)) == (policy, num_notes)


def test_only_the_models_that_are_needed_are_sources() -> None:
    assert list(resolved(options(), RoutingOptions(policy="target")).sources) == ["target"]
    rsd = resolved(options(ModelOptions()), RoutingOptions(policy="rsd"))
    assert list(rsd.sources) == ["draft", "target", "prm"]
    with pytest.raises(UsageError, match="process reward model"):
        resolved(options(), RoutingOptions(policy="rsd"))


def test_unused_flag_is_refused_and_an_unused_setting_is_not() -> None:
    routing = RoutingOptions(policy="target", tau="0.3")
    assert resolved(options(), routing).route.tau is None
    with pytest.raises(UsageError) as raised:
        resolved(options(SCRIPTED, "policy", "tau"), routing)
    assert raised.value.option == "tau"


@pytest.mark.parametrize("policy", ["arbitrage", "random"])
def test_tau_above_every_score_is_refused(policy: str) -> None:
    models = options(ModelOptions(), "policy", "tau")
    with pytest.raises(UsageError) as raised:
        resolved(models, RoutingOptions(policy=policy, tau="130"))
    assert raised.value.option == "tau"
    assert resolved(models, RoutingOptions(policy=policy, tau="1")).route.tau == 1.0
    assert resolved(models, RoutingOptions(policy=policy, tau="inf")).route.tau == math.inf


@pytest.mark.parametrize(
    ("command", "given"),
    [
        (BenchRoutingOptions("target,draft"), "router"),
        (BenchRoutingOptions("target"), "reward"),
        (BenchRoutingOptions("draft"), "prm"),
        (BenchRoutingOptions("speculative"), "early_stop"),
        (BenchRoutingOptions("target"), "run_code"),
        (CollectOptions("rollout"), "router"),
        (CollectOptions("rollout"), "prm"),
        (CollectOptions("prm", 2), "rollouts"),
    ],
)
def test_flag_that_a_command_does_not_use_is_refused(command: BenchRoutingOptions | CollectOptions, given: str) -> None:
    chosen = options(ModelOptions(), "policy", given)
    with pytest.raises(UsageError) as raised:
        resolved(chosen, command)
    assert raised.value.option == given


@pytest.mark.parametrize(("policy", "given"), [("target,oracle", "reward"), ("target,entropy", "early_stop")])
def test_flag_that_one_policy_of_a_benchmark_uses_is_taken(policy: str, given: str) -> None:
    resolved(options(ModelOptions(), "policy", given), BenchRoutingOptions(policy, reward="rollout"))


def test_benchmark_has_a_column_for_each_policy_and_tau() -> None:
    routing = BenchRoutingOptions("target,entropy@0.5,entropy,logprob@0.2,entropy")
    assert columns(resolved(options(), routing)) == [
        ("target", None),
        ("entropy", 0.5),
        ("entropy", 1.0),
        ("logprob", 0.2),
    ]
    usual = [("target", None), ("draft", None), ("speculative", None), ("entropy", 1.0)]
    assert columns(resolved(options(), BenchRoutingOptions())) == usual
    with_router = resolved(options(ModelOptions()), BenchRoutingOptions())
    assert [one.name for one in with_router.routes][3:] == ["arbitrage@careful", "logprob@0.3"]


def test_resumed_run_keeps_its_named_taus_and_early_stop(tmp_path: Path) -> None:
    models = options(ModelOptions(router=str(write_router(tmp_path / "small.safetensors"))))
    asked = BenchRoutingOptions("arbitrage@fast,arbitrage@30%,arbitrage@0.5")
    new = resolved(models, asked)
    assert new.named_taus is not None
    budget = {"policy": "arbitrage", "tau": 0.125, "tau_name": "30%"}
    run: Run = {"named_taus": {**new.named_taus.taus, "fast": 0.9}, "tau_costs": "the router's card", "early_stop": True}
    assert new.deciding_router is not None
    run |= {"models": {}, "router": {"sha256": new.deciding_router.sha256}}
    again = resolved(models, asked, run | {"policies": [budget]})
    assert [tau for _, tau in columns(again)] == [0.9, 0.125, 0.5]
    assert (again.stops_early, len(again.notes)) == (True, len(new.notes) + 1)
    now = resolved(models, replace(asked, early_stop=False), run | {"policies": []})
    assert now.stops_early is False


def test_collecting_needs_a_source_of_rewards() -> None:
    spec = resolved(options(), CollectOptions("rollout"))
    assert (spec.reward, spec.request.concurrency, list(spec.sources)) == ("rollout", "8", ["draft", "target"])
    with pytest.raises(UsageError, match="process reward model"):
        resolved(options(), CollectOptions())
