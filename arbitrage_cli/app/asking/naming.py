"""Finds the models and the router that options name: where they lie, the keys of their servers, and their prices.

No model is loaded, nothing is downloaded, and no request is sent.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path, PurePath
from typing import TypeVar

from arbitrage_cli.app.options import Options
from arbitrage_cli.costs.pair import parse_prices
from arbitrage_cli.errors import ArbitrageError, UsageError
from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.inference.servers.address import Address, ServedSource, find_keys
from arbitrage_cli.model_files.gguf import read_header
from arbitrage_cli.model_files.pairs import (
    DEFAULT_PAIR,
    UNIVERSAL_ROUTER,
    ModelEntry,
    PairEntry,
    backend_of,
    find_pair,
    hub_name,
    is_built_in,
    is_served,
    local_files,
    router_file,
    user_pairs,
)
from arbitrage_cli.model_files.stores import program_of
from arbitrage_cli.problems.tasks import Task
from arbitrage_cli.routing.router import Router, included_router, load
from arbitrage_cli.system.files import read_text
from arbitrage_cli.types import ROLES, WRITING, ByRole, ModelRole, frozen

MAX_TEMPLATE_BYTES = 1 << 20

T = TypeVar("T")

Sources = ByRole[str]
"""The locations of models: paths, names on the Hub or of other programs, built-in names, or addresses."""


@frozen
class NamedRouter:
    """A router, and the name by which it was found."""

    router: Router
    source: str

    @classmethod
    def of(cls, source: str) -> "NamedRouter":
        """Raises UsageError if the file cannot be read; RouterError if it is invalid."""
        return cls(load(router_file(source)), source)


@frozen
class NamedModels:
    """The models and the router for a command.

    `pair` is None if the draft or the target was named separately. `router` is None if no option names one; if
    `finds_router` is true, the router is then chosen by the models' files, once these are on this machine. `price` contains
    the prices of the pair's models, in the syntax of --price, and `priced` names the models to which its entry gives a price.
    `entries` are those of the models that a pair provides.
    """

    pair: PairEntry | None
    sources: Sources
    router: NamedRouter | None
    finds_router: bool
    load: LoadOptions
    served: ByRole[ServedSource]
    price: str | None = None
    priced: Sequence[ModelRole] = ()
    entries: ByRole[ModelEntry] = field(default_factory=dict)

    @property
    def has_router(self) -> bool:
        return self.router is not None or self.finds_router

    @property
    def is_local(self) -> bool:
        """Whether the draft and the target are on this machine. The checker may be on a server."""
        return not writing(self.served)

    @property
    def arguments(self) -> list[str]:
        """The options that name the pair, or its models."""
        named = {"pair": self.pair.name} if self.pair else writing(self.sources)
        return [part for name, value in named.items() for part in (f"--{name}", value)]


def choose_models(options: Options, task: Task) -> NamedModels:
    """Return the models and the router that the options name.

    If the user turned thinking on or off, use the pair that thinks, or the pair that does not.

    Raises UsageError if the pair is unknown, or an address, an API key or a setting of the pair is invalid; RouterError if
    the router cannot be used.
    """
    pair, sources = name_models(options)
    if is_served(sources.get("prm", "")):
        raise UsageError("a process reward model cannot run on a server", "use a GGUF file", option="prm")
    entries = entries_of(pair, sources)
    load_options = load_options_of(options, pair)
    return NamedModels(
        pair,
        sources,
        router_of(options, pair, task),
        finds_router=task.name != "code" and not any(map(backend_of, sources.values())),
        load=load_options,
        served=served_sources(sources, entries, load_options),
        price=_price_of(pair, entries),
        priced=[role for role, entry in entries.items() if entry.price],
        entries=entries,
    )


def in_both_roles(options: Options) -> Options:
    """Return the options with the model that fills both roles, if quick answers and thinking are those of one model.

    This is the only model that was typed or, if none was typed, the only one that is set. A pair that was typed has both.
    """
    if not options.has_quick_answers or "pair" in options.explicit:
        return options
    models: dict[str, str | None] = {"draft": options.draft, "target": options.target}
    typed = [model for role, model in models.items() if model and role in options.explicit]
    found = typed or [model for model in models.values() if model]
    return replace(options, draft=found[0], target=found[0]) if len(found) == 1 else options


def name_models(options: Options) -> tuple[PairEntry | None, Sources]:
    """Return the pair, unless other models take its place, and where all models lie. Raises UsageError if it is unknown."""
    for name in ("pair", "draft", "target", "router", "prm", "check", "policy", "tau"):
        if getattr(options, name) == "":
            raise UsageError("the value is empty", "enter a value, or omit the option", option=name)
    options = in_both_roles(options)
    pair = choose_pair(options)
    named = options.explicit if "pair" in options.explicit else ROLES
    sources: dict[ModelRole, str] = {role: source for role in ROLES if role in named and (source := getattr(options, role))}
    if pair:
        sources = {**pair.sources, **sources}
    return (pair if pair and _is_pair(pair, sources) else None), sources


def names_of(options: Options) -> list[str]:
    """Return the name of the pair, or the names of its models, for the name of a run folder."""
    pair, sources = name_models(options)
    return [pair.name] if pair else list(writing(sources).values())


def writing(models: ByRole[T]) -> dict[ModelRole, T]:
    """Return the draft and the target of these models."""
    return {role: model for role, model in models.items() if role in WRITING}


def word_for(role: ModelRole) -> str:
    """Return what users read for a role."""
    return "checker" if role == "check" else role


def label_of(source: str) -> str:
    """Return a model's name for users: its name or its file's name; on a server, the model's name or the host."""
    if is_served(source):
        address = Address.parse(source)
        return address.model or address.host
    if is_built_in(source) or backend_of(source) or program_of(source) or hub_name(source):
        return source
    return PurePath(source).name


def places_of(sources: Sources, router: NamedRouter | None) -> dict[str, str]:
    """Return where models and the router lie, for run.json. Paths are absolute, so that another folder finds them."""
    places: dict[str, str] = {role: absolute_place(source) for role, source in sources.items()}
    if router:
        places["router"] = absolute_place(router.source)
    return places


def absolute_place(source: str) -> str:
    """Return where a model or a router lies, seen from any folder."""
    is_path = label_of(source) != source and not is_served(source)
    return str(Path(source).expanduser().absolute()) if is_path or Path(source).is_file() else source


def load_options_of(options: Options, pair: PairEntry | None) -> LoadOptions:
    return LoadOptions(
        context_size=pair.ctx if pair and options.ctx is None else options.ctx,
        threads=options.threads,
        gpu_layers=options.gpu_layers,
        flash_attention=options.flash_attention,
        kv_type=options.kv_type,
        template_variables=dict(pair.chat_template_kwargs or {}) if pair else {},
    )


def router_of(options: Options, pair: PairEntry | None, task: Task) -> NamedRouter | None:
    """Return the router that the options or the pair name. For code, the pair's router is not used."""
    source = options.router or (pair.router if pair and task.name != "code" else None)
    found = NamedRouter.of(source) if source else None
    if found:
        found.router.check_steps(task.step_end)
    return found


def router_now(named: NamedModels, task: Task) -> NamedRouter | None:
    """Return the named router or, if none is named, the included router that was trained on these models, or the universal one.

    The router is found by the models' files, as far as they are on this machine.
    """
    if named.router or not named.finds_router:
        return named.router
    files = {role: local_files(source) for role, source in named.sources.items()}
    found = NamedRouter.of(included_router(files) or UNIVERSAL_ROUTER)
    found.router.check_steps(task.step_end)
    return found


def system_of(options: Options, pair: PairEntry | None, task: Task) -> str:
    """Return the system prompt: that of the options, of the pair or of the task."""
    if options.system is not None:
        return options.system
    return task.instructions if pair is None or pair.system is None else pair.system


def choose_pair(options: Options) -> PairEntry | None:
    models = (options.draft, options.target)
    if any(models) and (not options.pair or (all(models) and "pair" not in options.explicit)):
        return None
    pairs = user_pairs()
    pair = find_pair(options.pair or DEFAULT_PAIR, pairs)
    thinking = options.thinking
    if any(models) or thinking is None or options.has_quick_answers:
        return pair
    if thinking.is_on:
        return find_pair(pair.thinking_pair, pairs) if pair.thinking_pair else pair
    return next((other for other in pairs.values() if other.thinking_pair == pair.name), pair)


def _is_pair(pair: PairEntry, sources: Sources) -> bool:
    return (sources.get("draft"), sources.get("target")) == (pair.draft.source, pair.target.source)


def _price_of(pair: PairEntry | None, entries: ByRole[ModelEntry]) -> str | None:
    """Return the prices of the pair's models, in the syntax of --price, or None if the target has no price.

    Raises UsageError if a price is invalid.
    """
    prices = {role: entry.price for role, entry in entries.items() if entry.price}
    if "target" not in prices:
        return None
    price = ",".join(f"{role}={price}" for role, price in prices.items())
    try:
        if not parse_prices(price)["target"].completion:
            raise UsageError("the completion tokens of the target must cost more than 0", "omit the price of a free target")
    except UsageError as error:
        raise UsageError(f"pair '{pair and pair.name}': price: {error.message}", error.hint) from error
    return price


# --- models on servers


def entries_of(pair: PairEntry | None, sources: Sources) -> dict[ModelRole, ModelEntry]:
    """Return the pair's entries for the models that it provides."""
    entries = pair.entries if pair else {}
    return {role: entry for role, entry in entries.items() if sources.get(role) == entry.source}


def served_sources(sources: Sources, entries: ByRole[ModelEntry], load: LoadOptions) -> dict[ModelRole, ServedSource]:
    """Return the models on servers, with their keys and settings. Raises UsageError if one of these is invalid."""
    addresses = {role: _address(role, source) for role, source in sources.items() if is_served(source)}
    keys = find_keys(addresses, {role: entry.api_key_env for role, entry in entries.items()}, os.environ)
    templates = {role: _read_template(entry.template) for role, entry in entries.items() if entry.template}
    return {
        role: ServedSource(
            address,
            key=keys.get(role),
            server=entries[role].server if role in entries else None,
            template=templates.get(role),
            template_variables=load.template_variables,
            context_size=load.context_size,
        )
        for role, address in addresses.items()
    }


def template_sha256(served: ServedSource) -> str | None:
    return None if served.template is None else hashlib.sha256(served.template.encode()).hexdigest()


def _address(role: ModelRole, source: str) -> Address:
    try:
        return Address.parse(source)
    except UsageError as error:
        raise UsageError(error.message, error.hint, option=role) from error


def _read_template(file: str) -> str:
    path, place = Path(file).expanduser(), f"the pair's template {file}"
    hint = "use a Jinja file, or a GGUF file with a chat template"
    try:
        if path.suffix == ".gguf":
            template = read_header(path).metadata.get("tokenizer.chat_template")
        else:
            template = read_text(path, MAX_TEMPLATE_BYTES)
    except (OSError, ValueError, ArbitrageError) as error:
        raise UsageError(f"{place}: cannot be read ({error})", hint) from error
    if not isinstance(template, str) or not template.strip():
        raise UsageError(f"{place}: contains no chat template", hint)
    return template
