"""The sentences at the top of a report, and what its runs were made with. Knows no markup."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from arbitrage_cli.display import rounding
from arbitrage_cli.display.charts import ALONE
from arbitrage_cli.evaluation.accuracy import WITH_PROBABILITY

Json = Mapping[str, Any]
Fact = tuple[str, Sequence[str]]
"""A name, and one text; or one for each run, if they differ."""


# --- sentences


def headline(figures: Json) -> Iterable[str]:
    """The routed result against the target alone, and the share of attempts that were cut, if there are any."""
    policy = routed(figures["policies"])
    if policy is not None and policy["accuracy"] is not None:
        result = (
            f"{policy['label']} solves {rounding.percent(policy['accuracy'])} of {rounding.count(figures['n'], 'problem')}"
        )
        yield f"{result}{_against_target(policy)}."
    cut = sum(one["cut"] for one in figures["policies"])
    if cut:
        made = sum(one["n"] - one["missing"] for one in figures["policies"])
        yield f"{cut} of {made} attempts ({rounding.percent(cut / made)}) ended at a limit, unfinished."


def routed(policies: Sequence[Json]) -> Json | None:
    """The policy that the run is about: the first with a head, else the first that routes."""
    routing = [policy for policy in policies if policy["tau"] is not None]
    return next((policy for policy in routing if policy["policy"] == WITH_PROBABILITY), routing[0] if routing else None)


def _against_target(policy: Json) -> str:
    parts = []
    if policy["accuracy_difference"] is not None:
        difference = rounding.points(policy["accuracy_difference"])
        interval = rounding.points_range(policy["accuracy_difference_interval"])
        parts.append(f"{difference} points {interval} against the target alone")
    for name, what in (("speedup", "times as fast"), ("throughput_ratio", "times as many problems a second")):
        if policy[name] is not None:
            parts.append(
                f"{rounding.number(policy[name])} {what} {rounding.number_range(policy[f'{name}_interval'])}".rstrip()
            )
    return f": {', '.join(parts)}" if parts else ""


def change(comparison: Json, policies: Sequence[Json], names: Sequence[str]) -> str:
    """The second run against the first, for the policy that the first is about; empty if they do not share it."""
    policy = routed(policies) or {"label": None}
    entry = next((one for one in comparison["policies"] if one["first"] == policy["label"] and one["n"]), None)
    if entry is None:
        return ""
    difference = rounding.points(entry["accuracy_difference"])
    said = f"{names[1]} against {names[0]}: {entry['second']} {difference} points "
    said += rounding.points_range(entry["accuracy_difference_interval"])
    if entry["seconds_ratio"] is not None:
        said += f", {rounding.number(entry['seconds_ratio'])} times as fast {rounding.number_range(entry['seconds_ratio_interval'])}"
    return f"{said.rstrip()}, over the {rounding.count(entry['n'], 'attempt')} that both have."


def summary(figures: Json) -> Iterable[str]:
    """What the two models do alone: everything else lies between."""
    for policy in figures["policies"]:
        if policy["policy"] in ALONE and (pace := _pace(policy)):
            yield f"The {policy['policy']} alone solves {rounding.percent(policy['accuracy'])} {pace}."


def _pace(policy: Json) -> str:
    """How fast a policy is; empty if unknown."""
    if policy["problems_per_second"] is not None:
        return f"at {rounding.number(policy['problems_per_second'])} problems a second"
    return "" if policy["seconds_mean"] is None else f"in {rounding.number(policy['seconds_mean'])} s a problem"


# --- facts


def facts(runs: Sequence[tuple[str, Json]]) -> tuple[list[Fact], list[Fact]]:
    """What the runs, each with a name, were made with: first what a reader asks first, then the rest."""
    return _merged(runs, _main_facts), _merged(runs, _other_facts)


def _merged(runs: Sequence[tuple[str, Json]], facts_of: Callable[[Json], Iterable[tuple[str, str]]]) -> list[Fact]:
    found = [(name, dict(facts_of(run))) for name, run in runs]
    names = dict.fromkeys(name for _, own in found for name in own)
    return [(name, _texts([(run, own.get(name, "none")) for run, own in found])) for name in names]


def _texts(texts: Sequence[tuple[str, str]]) -> list[str]:
    """The one text of all runs, or that of each."""
    distinct = list(dict.fromkeys(text for _, text in texts))
    return distinct if len(distinct) == 1 else [f"{run}: {text}" for run, text in texts]


def _main_facts(run: Json) -> Iterable[tuple[str, str]]:
    """What a reader asks first of a run: models, head, machine and settings."""
    yield from model_facts(run)
    machine = {name: value for name, value in run["machine"].items() if name != "flags"}
    yield "machine", _listed(dict(sorted(machine.items(), key=lambda fact: fact[0] != "cpu")))
    yield "settings", _listed({**run["sampling"], **run["limits"], **run["context"]})


def model_facts(run: Json) -> Iterable[tuple[str, str]]:
    """Models and head, each with what tells it apart."""
    for role, model in run["models"].items():
        named = dict.fromkeys(str(model[name]) for name in ("description", "source") if model.get(name))
        threads = [rounding.count(model["threads"], "thread")] if model.get("threads") else []
        yield {"prm": "PRM"}.get(role, role), ", ".join([*named, *_digest(model), *threads])
    if run["router"]:
        yield "head", ", ".join([run["router"]["name"], *_digest(run["router"])])


def _other_facts(run: Json) -> Iterable[tuple[str, str]]:
    yield "data set", ", ".join([run["dataset"]["name"], *_digest(run["dataset"])])
    yield from ((name, run[name]) for name in ("grader", "tool", "created"))
    yield "command", " ".join(run["command"])
    if "flags" in run["machine"]:
        yield "llama.cpp", str(run["machine"]["flags"])


def _listed(values: Json) -> str:
    known = {key: value for key, value in values.items() if isinstance(value, str | int | float)}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in known.items())


def _digest(part: Json) -> list[str]:
    return [f"sha256 {part['sha256'][:12]}"] if part["sha256"] else []
