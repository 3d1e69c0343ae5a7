"""Which models a command uses: named one by one or as a pair, by flag, environment or settings file. Loads none."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer

from arbitrage_cli.errors import UsageError
from arbitrage_cli.inference.chat_template import INSTRUCTIONS
from arbitrage_cli.model_files.pairs import (
    DEFAULT_PAIR,
    UNIVERSAL_HEAD,
    Pair,
    check_template_variables,
    find_pair,
    is_built_in,
    is_toy,
    local_files,
    read_pairs,
)
from arbitrage_cli.routing.policies import Policy
from arbitrage_cli.runs.folder import COLLECT, read_run_folder
from arbitrage_cli.system.machine import logical_processors
from arbitrage_cli.system.paths import user_folder
from arbitrage_cli.types import ModelRole

BUILT_IN_WARNING = (
    "the built-in models are small and know only grade-school arithmetic; for real ones: "
    "arbitrage models pull qwen2.5-coder, then --pair qwen2.5-coder"
)

PLACES = ("DEFAULT_MAP", "ENVIRONMENT", "COMMANDLINE")
"""Where values come from, as Typer calls it: the nearest to the user last."""

OWN_SETTINGS = ("ctx", "system", "chat_template_kwargs")
"""What a pair says of how its models are used, by the names of its keys."""

UNIVERSAL_WARNING = (
    "no head was trained for these two models: the universal one decides, which learned on others; "
    "train one: arbitrage collect, then arbitrage train"
)


def pair_named(context: typer.Context, name: str | None, *, draft: str | None, target: str | None) -> Pair | None:
    """The pair of that name, one of the user's own included; the built-in one where nothing is named at all.

    None if models are named one by one: without a pair, or both in a stronger place. UsageError if there is no such pair.
    """
    if not name and (draft or target):
        return None
    if draft and target and min(strength(context, "draft"), strength(context, "target")) > strength(context, "pair"):
        return None
    return find_pair(name or DEFAULT_PAIR, read_pairs(user_folder() / "pairs.toml"))


def warnings_about(
    sources: Mapping[ModelRole, str], pair: Pair | None, head: str | None = None, *, threads: int | None = None
) -> list[str]:
    """What the user has to know of these models, of the head that decides, and of threads that were asked for."""
    built_in = [BUILT_IN_WARNING] if any(map(is_built_in, sources.values())) else []
    universal = [UNIVERSAL_WARNING] if head == UNIVERSAL_HEAD else []
    return [
        *built_in,
        *(_borrowed(sources, pair) if pair else []),
        *universal,
        *_odd_pair(sources),
        *_crowded(sources, threads),
    ]


def _odd_pair(sources: Mapping[ModelRole, str]) -> list[str]:
    """That draft and target are one file, or the wrong way round by the sizes of theirs. Nothing of files that are not here."""
    draft, target = (local_files(sources[role]) if role in sources else () for role in ("draft", "target"))
    try:
        if not draft or not target:
            return []
        if draft[0].resolve() == target[0].resolve():
            return [f"draft and target are the same file, {draft[0]}: nothing is gained by routing between them"]
        sizes = [sum(path.stat().st_size for path in files) for files in (draft, target)]
    except (OSError, RuntimeError):  # whoever opens them tells it
        return []
    if sizes[0] <= sizes[1]:
        return []
    return [
        (
            f"the target's file is smaller than the draft's ({target[0].name}, {draft[0].name}): are they the wrong way round? "
            "--draft is the fast model, --target the strong one"
        )
    ]


def _crowded(sources: Mapping[ModelRole, str], threads: int | None) -> list[str]:
    """That there are more threads than processors. Demo models have one in any case."""
    num_processors = logical_processors()
    if threads is None or threads <= num_processors or all(map(is_toy, sources.values())):
        return []
    return [
        (
            f"{threads} threads are more than the {num_processors} logical processors here, and wait for each other: "
            f"--threads {num_processors} or less is faster, often by far"
        )
    ]


def _borrowed(sources: Mapping[ModelRole, str], pair: Pair) -> list[str]:
    """That what the pair says of its models is used for one that is not among them."""
    others = [source for role, source in sources.items() if source not in (pair.draft, pair.target) and role != "prm"]
    own = [name for name in OWN_SETTINGS if getattr(pair, name) is not None]
    if not others or not own:
        return []
    return [f"{', '.join(others)}: not of pair {pair.name}, but used with its {', '.join(own)}; flags override them"]


def head_named(given: str | None, pair: Pair | None, models: Mapping[ModelRole, str | None]) -> str | None:
    """The head that was named, else the pair's own where these are its models, else the universal one.

    None for demo models, which compute nothing that a head could read.
    """
    if given:
        return given
    if pair and pair.head and (models["draft"], models["target"]) == (pair.draft, pair.target):
        return pair.head
    return None if any(source and is_toy(source) for source in models.values()) else UNIVERSAL_HEAD


def models_of_states(folder: Path) -> tuple[Pair | None, Mapping[ModelRole, str | None]]:
    """The models that states were collected with, and the pair that they are, if they are one. UsageError."""
    told = (read_run_folder(folder, COLLECT).run or {}).get("models", {})
    models: dict[ModelRole, str | None] = {role: told.get(role, {}).get("source") for role in ("draft", "target", "prm")}
    pairs = read_pairs(user_folder() / "pairs.toml").values()
    return next((pair for pair in pairs if (pair.draft, pair.target) == (models["draft"], models["target"])), None), models


def instructions(given: str | None, pair: Pair | None) -> str:
    """The system prompt: as given, else the pair's own, else the paper's."""
    if given is not None:
        return given
    return INSTRUCTIONS if pair is None or pair.system is None else pair.system


def template_variables(given: str | None, pair: Pair | None) -> dict[str, Any]:
    """What the chat templates are told: as given, an object in JSON, else as the pair says. UsageError for anything else."""
    if given is None:
        return dict(pair.chat_template_kwargs or {}) if pair else {}
    try:
        variables = json.loads(given)
    except (ValueError, RecursionError):
        variables = None
    if not isinstance(variables, dict):
        raise UsageError(
            "--chat-template-kwargs is no JSON object", """for example --chat-template-kwargs '{"enable_thinking": false}'"""
        )
    check_template_variables(variables, "--chat-template-kwargs")
    return variables


def style_of_prm(given: str | None, prm: str | None, pair: Pair | None) -> str:
    """How the process reward model is asked: as given, else as the pair says of its own, else in turns."""
    return given or (pair.prm_style if pair and prm == pair.prm else None) or "turns"


def reward_needed(policies: Iterable[Policy], given: str | None) -> str | None:
    """Who rates steps for policies that leave it open: as given, else a process reward model; None if none of them does."""
    return str(given or "prm") if any(policy.reward == "any" for policy in policies) else None


def name_models(
    context: typer.Context, *, draft: str | None, target: str | None, prm: str | None, pair: Pair | None
) -> Mapping[ModelRole, str | None]:
    """The model of each role. One named by itself wins over the pair's, unless the pair was named in a stronger place."""
    named: dict[ModelRole, str | None] = {"draft": draft, "target": target, "prm": prm}
    if pair is None:
        return named
    of_pair: dict[ModelRole, str | None] = {"draft": pair.draft, "target": pair.target, "prm": pair.prm}
    named_in = strength(context, "pair")
    return {
        role: source if source and strength(context, role) >= named_in else of_pair[role] for role, source in named.items()
    }


def refuse_ignored(context: typer.Context, policy: Policy) -> None:
    """UsageError for a flag of the command line that this policy does not go by; other places may hold for other policies."""
    for name, is_used in accepted_options(policy).items():
        if not is_used and is_flag(context, name):
            words, option = name.replace("_", " "), f"--{name.replace('_', '-')}"
            raise UsageError(
                f"policy {policy.name} has no {words}", f"leave {option} out, or give a --policy that goes by it"
            )


def accepted_options(policy: Policy) -> Mapping[str, bool]:
    """Whether the policy goes by each parameter that says how to route."""
    return {
        "tau": bool(policy.number),
        "budget": policy.needs_head,
        "head": policy.needs_head,
        "early_stop": policy.can_stop_early,
    }


def is_flag(context: typer.Context, parameter: str) -> bool:
    """Whether a value was given on the command line."""
    return strength(context, parameter) == len(PLACES)


def setting_of(context: typer.Context, parameter: str) -> str | None:
    """What the environment, or else a settings file, says of a parameter, whatever the command line does. None for nothing."""
    variables = (str(one.envvar) for one in context.command.params if one.name == parameter and one.envvar)
    values = [*(os.environ.get(name) for name in variables), context.lookup_default(parameter)]
    return next((str(value) for value in values if value not in (None, "")), None)


def needed_models(
    policies: Iterable[Policy], named: Mapping[ModelRole, str | None], reward: str | None = None
) -> dict[ModelRole, str]:
    """The models that the policies need, draft first. UsageError if one of them was not named.

    `reward` is who rates for a policy that leaves it open: a process reward model, unless it is `rollout`.
    """
    sources: dict[ModelRole, str] = {}
    for policy in policies:
        rates = policy.reward == "prm" or (policy.reward == "any" and reward != "rollout")
        for role in (*policy.models, *(("prm",) if rates else ())):
            source = named[role]
            if not source and role == "prm":
                raise UsageError(
                    "a process reward model is needed to rate steps, and none is named",
                    "give --prm MODEL, or a --pair that has one (llama3, builtin)"
                    + (
                        "; where answers are known (bench, collect) also: --reward rollout" if policy.reward == "any" else ""
                    ),
                )
            if not source:
                raise UsageError(
                    f"policy {policy.name} needs a {role} model",
                    f"give --{role} MODEL.gguf, or a --pair of arbitrage models list; or try the demo: --pair scripted",
                )
            sources[role] = source
    return {role: sources[role] for role in named if role in sources}


def strength(context: typer.Context, parameter: str) -> int:
    """How near to the user a value was given: as a flag, in the environment, in a settings file, nowhere."""
    source = context.get_parameter_source(parameter)
    return PLACES.index(source.name) + 1 if source and source.name in PLACES else 0
