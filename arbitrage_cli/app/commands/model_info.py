"""Describes pairs, model files and routers as JSON, and proposes pairs of the models on this machine."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

from arbitrage_cli.errors import ModelError, ModelFileError, UsageError
from arbitrage_cli.inference.open import load_llama, rolls_back
from arbitrage_cli.model_files.checksums import identify
from arbitrage_cli.model_files.gguf import num_snapshots, read_facts
from arbitrage_cli.model_files.hub import HubName
from arbitrage_cli.model_files.pairs import (
    BUILT_IN,
    PairEntry,
    find_files,
    found_names,
    hub_name,
    is_served,
    local_files,
    no_such_file,
    router_file,
    shipped_routers,
    user_pairs,
)
from arbitrage_cli.system.machine import total_memory
from arbitrage_cli.types import THINK_TOKENS, Json

if TYPE_CHECKING:
    from arbitrage_cli.evaluation.bounds import Bound


def pair_models(pair: PairEntry) -> list[Json]:
    """Describe a pair's models and router: whether each is stored on this machine, and its size in bytes."""
    files = {str(role): (source, local_files(source)) for role, source in pair.sources.items()}
    if pair.router:
        path = router_file(pair.router)
        files["router"] = pair.router, (path,) if path.is_file() else ()
    return [
        {"role": role, "model": source, "here": bool(paths), "bytes": _total_size(paths) if paths else None}
        for role, (source, paths) in files.items()
    ]


def _total_size(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def sources_of(name: str) -> list[str]:
    """Return the models of the pair with this name that write steps on this machine, or the name if there is no such pair."""
    pair = user_pairs().named(name)
    if pair is None:
        return [name]
    return [entry.source for entry in pair.entries.values() if not is_served(entry.source)]


def names_to_fetch(name: str) -> list[HubName]:
    """Return the Hub models that a pair or model name refers to. Raises UsageError if the name is unknown."""
    pair = user_pairs().named(name)
    sources = [name] if pair is None else [source for source in pair.sources.values() if not is_served(source)]
    for source in sources:
        if not (hub_name(source) or local_files(source)):
            hint = "use a Hub model (user/repo:quant) or a pair: " + ", ".join(user_pairs())
            raise UsageError(f"'{source}' is not a pair, a file or a name on the Hub", hint)
    return [wanted for source in sources if (wanted := hub_name(source))]


def pair_bounds(name: str) -> "list[Bound]":
    """Return how fast each policy can be with this pair, or [] if this is not known.

    It is known only after the token costs were measured on this machine, and if all settings of the pair are available, such
    as the API key of its checker.
    """
    from arbitrage_cli.app.asking.naming import choose_models, router_now  # with NumPy
    from arbitrage_cli.app.options import Options
    from arbitrage_cli.costs.pair import PairCosts
    from arbitrage_cli.costs.store import find_measurements
    from arbitrage_cli.evaluation.bounds import bounds_of
    from arbitrage_cli.problems.tasks import find_task
    from arbitrage_cli.routing.policies import POLICIES
    from arbitrage_cli.routing.route import AvailableRouter, Route, make_route

    if user_pairs().named(name) is None:
        return []
    task = find_task(None)
    try:
        named = choose_models(Options(pair=name, explicit=frozenset({"pair"})), task)
    except UsageError:
        return []
    measured = {role: one.costs for role, one in find_measurements(named.sources, named.load).items()}
    costs = None if named.price else PairCosts.of(measured)
    if costs is None:
        return []
    routes = [Route(policy) for policy in POLICIES.values() if policy.is_candidate and not policy.has_tau]
    if "check" in named.sources and "check" not in measured:
        routes = [route for route in routes if not route.policy.compares_answers]
    router = router_now(named, task)
    available = AvailableRouter(router.router, router.source, costs) if router else None
    if available:
        routes.append(make_route(POLICIES["arbitrage"], None, available))
    return bounds_of(routes, costs, available.table if available else None, measured.get("check"))


def router_named(name: str) -> str | None:
    shipped = f"{BUILT_IN}{name}"
    if name.endswith(".safetensors") or name in shipped_routers():
        return name
    return shipped if shipped in shipped_routers() and name not in user_pairs() else None


def describe_router(source: str) -> Json:
    """Return a router's card, sha256 and origin. Raises RouterError or ModelFileError if the file is damaged."""
    from arbitrage_cli.routing.route import AvailableRouter  # with NumPy
    from arbitrage_cli.routing.router import load

    router, identity = load(router_file(source)), identify(router_file(source))
    if identity.origin == "shipped":
        identity.check()
    taus = AvailableRouter(router, source).table.to_json()
    return {"sha256": router.sha256, "origin": identity.origin, **router.card.to_json(), "taus": taus}


def describe_models(names: Sequence[str]) -> Json:
    """Describe model files and the memory that they need. Raises ModelFileError if a GGUF file is missing or invalid."""
    described: dict[str, Json] = {}
    for name in names:
        pair = user_pairs().named(name)
        for source in sources_of(name):
            if source not in described:
                described[source] = describe_model(source, pair)
    sizes = [model["memory_bytes"] for model in described.values()]
    return {
        "models": [*described.values()],
        "memory_bytes": None if None in sizes else sum(filter(None, sizes)),
        "machine_bytes": total_memory(),
    }


def _quantization(file_type: int | None) -> str | None:
    with contextlib.suppress(ModelError):  # without llama.cpp, files can still be described
        return None if file_type is None else str(load_llama().quantization_name(file_type))
    return None


def describe_model(source: str, pair: PairEntry | None = None) -> Json:
    """Describe a model from its files. Raises ModelFileError if a file is missing or invalid."""
    from arbitrage_cli.app.deciding.decide import THINK_CONTEXT_SIZE  # with NumPy
    from arbitrage_cli.app.deciding.gather import prompt_of
    from arbitrage_cli.inference.speculation import MAX_SPECULATED

    files = local_files(source)
    if not files and hub_name(source):
        name = pair.name if pair else source
        raise ModelFileError(f"{source} is not on this machine", f"download it: arbitrage models pull {name}")
    if not (files := files or find_files(source)):
        raise ModelFileError(f"{source} is not a model file", "to see what a server supports, solve a problem with --debug")
    if not files[0].exists():
        raise no_such_file(source)
    facts = read_facts(files, pair.ctx if pair else None)
    prompt = prompt_of(facts.files[0], (pair and pair.chat_template_kwargs) or {})
    form, by_itself = (prompt.own_format, prompt.thinks_by_itself) if prompt else (None, False)
    if by_itself and not (pair and pair.ctx):
        facts = read_facts(facts.files, min(THINK_CONTEXT_SIZE, facts.trained_context_size or THINK_CONTEXT_SIZE))
    verifies = rolls_back(facts.files) is not False and not (pair and source == pair.draft.source)
    snapshots = facts.state_bytes * (num_snapshots(facts.state_bytes, MAX_SPECULATED) if verifies else 0)
    return {
        "model": source,
        **asdict(facts),
        "quantization": _quantization(facts.file_type),
        "files": [str(file) for file in facts.files],
        "memory_bytes": None if facts.memory_bytes is None else facts.memory_bytes + snapshots,
        "states_bytes": facts.state_bytes + facts.checkpoint_bytes + snapshots,
        "think_format": form.name if form else None,
        "thinks_by_itself": by_itself,
        "think_max_tokens": THINK_TOKENS if form else None,
    }


# --- models of other programs

MIN_RATIO, GOOD_RATIO = 4.0, 10.0  # size of the target / size of the draft; below the minimum, routing rarely saves time
MAX_PROPOSALS = 3


def found_models() -> Iterator[Json]:
    """Describe the models of Ollama, LM Studio and the Hub's cache.

    A file that has several names is described once. Of a model that cannot be used, only the `error` is known.
    """
    seen: set[Path] = set()
    for name in found_names():
        try:
            model = describe_model(name)
        except ModelError as error:
            yield {"model": name, "error": error.message}
            continue
        if (file := Path(model["files"][0]).resolve()) not in seen:
            seen.add(file)
            yield model


def propose_pairs(models: Iterable[Json], memory: int | None) -> list[tuple[str, str]]:
    """Return at most `MAX_PROPOSALS` drafts and targets by name, best first.

    The models of a pair fit in memory together, and have the same architecture or a vocabulary of the same size. A pair is
    better if its target is larger, then if the draft has closer to a tenth of its size.
    """
    chat = [model for model in models if model.get("has_template")]
    pairs: list[tuple[int, float, tuple[str, str]]] = []
    for draft, target in permutations(chat, 2):
        ratio = target["file_bytes"] / draft["file_bytes"]
        fits = memory is None or sum(model["memory_bytes"] or model["file_bytes"] for model in (draft, target)) < memory
        is_related = any(draft[name] == target[name] for name in ("architecture", "vocabulary_size"))
        if fits and is_related and ratio >= MIN_RATIO:
            names = draft["model"], target["model"]
            pairs.append((-target["num_parameters"], abs(math.log(ratio / GOOD_RATIO)), names))
    return [names for *_, names in sorted(pairs)[:MAX_PROPOSALS]]
