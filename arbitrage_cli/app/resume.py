"""Continues a run: restores what was asked when it began, and finds its models and its router where they lie now.

An option that is typed now must have the same value as in the run. All other options come from the run, whatever settings,
variables and pairs say today. A model is identified by its checksum or by what its server reports, so its location may
change. Only local locations are taken from run.json, which may come from somebody else: it never chooses a server, an API
key or a download.
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from arbitrage_cli.app.naming import (
    NamedModels,
    NamedRouter,
    choose_pair,
    entries_of,
    label_of,
    router_of,
    served_sources,
    template_sha256,
    word_for,
)
from arbitrage_cli.app.options import Options, RewardSource, validated_option
from arbitrage_cli.errors import ArbitrageError, DamagedRunError, UsageError
from arbitrage_cli.inference.servers.address import Address, ServedSource
from arbitrage_cli.model_files.checksums import sha256_seen
from arbitrage_cli.model_files.pairs import (
    PairEntry,
    backend_of,
    hub_name,
    is_served,
    local_files,
    no_such_file,
    shipped_routers,
)
from arbitrage_cli.problems.rows import Dataset
from arbitrage_cli.problems.tasks import Task
from arbitrage_cli.routing.route import AvailableRouter, ParsedRoute, Route, make_route, preset_or_budget
from arbitrage_cli.runs.run import Asked, DataSet, ModelSetup, Run
from arbitrage_cli.types import ROLES, Json, ModelRole, frozen

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MODELS = ("pair", "draft", "target", "router", "prm", "check")
"""Options that say where models and the router lie. They are not restored, because these are found by their checksums."""

ROUTING = ("policy", "tau")
GROWING = ("limit", "ids", "samples", "dataset", "mapping")
"""Options that may differ from those of the run, which then gets further problems or samples. Problems have a checksum."""

NOT_KEPT = (
    "threads", "offline", "minutes", "timeout", "run_code", "output_folder", "fresh", "dry_run", "save", "costs", "reward",
    "concurrency", "config", "explicit", "command",
)  # fmt: skip
"""Options that a run does not keep, or that are compared elsewhere."""

ELSEWHERE = "omit this option, or use another --output"

Group = TypeVar("Group", bound="DataclassInstance")
"""A group of options."""
Fetch = Callable[[str], object]
"""Downloads a model that was typed, if it is on the Hub and not on this machine."""


# --- what was asked


def asked_of(command: Sequence[str], typed: frozenset[str], *groups: Any) -> Asked:
    """Return what was asked, for run.json: the command, and the options that were typed or set.

    The path of a data set is absolute, so that another folder finds it.
    """
    options: Json = {}
    for group in groups:
        for one in fields(group):
            value = getattr(group, one.name)
            if one.name not in NOT_KEPT and value != _default(group, one.name):
                is_file = one.name == "dataset" and Path(value).is_file()
                options[one.name] = str(Path(value).absolute()) if is_file else value
    return Asked(command=list(command), options=options, typed=sorted(typed & options.keys()))


def settings_of(options: Options) -> Json:
    """Return the options that were typed or set, and that affect answers, without those that choose models or policies."""
    return {
        name: value
        for name, value in asked_of((), frozenset(), options).options.items()
        if name in _kept(options) and name not in ROUTING
    }


def restored(group: Group, typed: frozenset[str], began: Run | None) -> Group:
    """Return a group of options. Options that were not typed now have the values of the run to continue, if there is one.

    Raises UsageError if an option was typed that has another value in the run; DamagedRunError if a value of the run is
    invalid.
    """
    if began is None:
        return group
    kept: Json = {}
    for name in _kept(group):
        before = began.asked.options.get(name, _default(group, name))
        if name not in typed:
            kept[name] = _checked(group, name, before)
        elif name not in (*GROWING, *ROUTING) and getattr(group, name) != before:
            raise differs(name, before, getattr(group, name))
    if "policy" in typed and getattr(group, "policy", None) != began.asked.options.get("policy"):
        kept.pop("tau", None)  # it belongs to the policy of the run
    return replace(group, **kept)


def restored_options(options: Options, began: Run | None) -> Options:
    """Return the shared options as `restored` does. `explicit` contains what was typed now, and when the run began."""
    if began is None:
        return options
    is_same_task = options.task == began.decided.settings.task  # the data set may have named it
    found = restored(options, options.explicit.difference({"task"} if is_same_task else ()), began)
    explicit = options.explicit.union(set(began.asked.typed).difference(MODELS).intersection(_kept(options)))
    if found.tau != began.asked.options.get("tau"):
        explicit = explicit.difference({"tau"} - options.explicit)
    return replace(found, explicit=explicit)


def keep_concurrency(options: Options, began: Run | None) -> Options:
    """Return the options with the concurrency of the run, on which its times depend.

    Raises UsageError if another was typed.
    """
    if began is None:
        return options
    before = began.decided.concurrency
    if "concurrency" in options.explicit and options.concurrency != before:
        raise differs("concurrency", before, options.concurrency)
    return replace(options, concurrency=before)


def begun_reward(reward: RewardSource | None, typed: frozenset[str], began: Run | None) -> RewardSource | None:
    """Return the source of rewards: that of the run, if it has one. Raises UsageError if another one was typed."""
    before: Any = began.decided.settings.reward if began else None
    if before and "reward" in typed and before != reward:
        raise differs("reward", before, reward)
    return before or reward


def differs(option: str, before: object, now: object) -> UsageError:
    """Return the error that an option has another value than in the run to continue."""
    shown = "without this option" if before is None else f"with {before!s:.80}"
    return UsageError(f"this run began {shown}, not with {now!s:.80}", ELSEWHERE, option=option)


def _kept(group: Any) -> list[str]:
    return [one.name for one in fields(group) if one.name not in NOT_KEPT and one.name not in MODELS]


def _default(group: Any, name: str) -> Any:
    found = next(one.default for one in fields(group) if one.name == name)
    return None if found is MISSING else found


def _checked(group: Any, name: str, value: Any) -> Any:
    try:
        return value if value == _default(group, name) else validated_option(type(group), name, value)
    except UsageError as error:
        hint = "restore run.json from a backup, or use another --output"
        raise DamagedRunError(f"run.json: asked.options.{name}: {error.message}", hint) from error


# --- where its models lie now


@frozen
class Places:
    """The possible locations of a model of the run: the one that the user typed, or several others, by precedence."""

    typed: str | None
    others: Sequence[str] = ()


def models_of_run(
    options: Options, began: Run, needed: Collection[str], task: Task, folder: Path, fetch: Fetch
) -> NamedModels:
    """Return the models of a run, each at its current place, and its router. Those in `needed` must be found.

    Raises UsageError if a model or the router is not found, or another one was typed, or a server is named only by run.json;
    ModelFileError if a file cannot be read.
    """
    pair = _pair_of_run(options, began)
    sources: dict[ModelRole, str] = {}
    for role in ROLES:
        if _is_left_out(role, began):
            if role in options.explicit:
                raise differs(role, None, getattr(options, role))
            continue
        with _unless_needed(role, needed):
            places = _places(role, options, pair, began)
            if source := _find(role, places, began, folder, fetch):
                sources[role] = source
    router: NamedRouter | None = None
    with _unless_needed("router", needed):
        router = _router_of_run(options, began, pair, task)
    settings = began.decided.settings
    size = pair.ctx if pair and options.ctx is None else options.ctx
    load = replace(settings.load, threads=options.threads, context_size=size)
    entries = entries_of(pair, sources)
    served = served_sources(sources, entries, load)
    kept = {role: _as_decided(role, one, began.decided.models.get(role)) for role, one in served.items()}
    is_whole = pair is not None and all(pair.sources.get(role) == source for role, source in sources.items())
    return NamedModels(
        pair if is_whole else None,
        sources,
        router,
        finds_router=began.decided.router is None and task.name != "code" and not any(map(backend_of, sources.values())),
        load=load,
        served=kept,
        price=began.decided.price,
        entries=entries,
    )


def _unless_needed(name: str, needed: Collection[str]) -> contextlib.AbstractContextManager[None]:
    """Return a context that ignores the errors of a model or router that no policy of this command uses."""
    return contextlib.nullcontext() if name in needed else suppress(ArbitrageError)


def _is_left_out(role: ModelRole, began: Run) -> bool:
    """Return whether a policy of the run uses such a model if there is one, and the run began without."""
    return role not in began.decided.models and any(role in route.policy.models for route in began.routes)


def _pair_of_run(options: Options, began: Run) -> PairEntry | None:
    """Return the pair that was typed or, as it is defined today, that of the run, if it still exists."""
    if "pair" in options.explicit:
        return choose_pair(replace(options, draft=None, target=None))
    asked = began.asked.options
    name = _checked(options, "pair", asked.get("pair"))
    if asked.get("draft") and asked.get("target") and not name:
        return None
    with suppress(UsageError):
        return choose_pair(replace(options, pair=name, draft=None, target=None))
    return None


def _places(role: ModelRole, options: Options, pair: PairEntry | None, began: Run) -> Places:
    """Return the possible locations of a model: as typed; else as set, as in the pair or the run, or beside a typed file."""
    own, of_pair, before = getattr(options, role), pair.sources.get(role) if pair else None, began.places.get(role)
    if role in options.explicit:
        return Places(own)
    if "pair" in options.explicit and of_pair:
        return Places(of_pair)
    here = [before] if before and _is_here(before) else []
    today = [place for place in (own, of_pair) if place]
    if role not in began.decided.models:  # what was named when the run began comes before what is named today
        return Places(None, [*here, *today])
    return Places(None, [*today, *here, *(_beside(before, options) if before else ())])


def _is_here(place: str) -> bool:
    """Return whether a place of run.json is on this machine, so that nothing has to be sent or downloaded."""
    return not is_served(place) and (hub_name(place) is None or bool(local_files(place)))


def _beside(place: str, options: Options) -> Iterator[str]:
    """Yield the paths of files with this name in the folders of the files that were typed."""
    for role in ("draft", "target", "prm", "check"):
        typed = getattr(options, role) if role in options.explicit else None
        if (
            typed
            and not is_served(typed)
            and not is_served(place)
            and (path := Path(typed).parent / Path(place).name).is_file()
        ):
            yield str(path)


def _find(role: ModelRole, places: Places, began: Run, folder: Path, fetch: Fetch) -> str | None:
    """Return the location of a model, or None if the run does not have the model yet, and no option names it."""
    model = began.decided.models.get(role)
    if places.typed:
        fetch(places.typed)
        if model and not _is_same(places.typed, model):
            raise _another(role, places.typed, model, began)
        return places.typed
    if model is None:
        found = next(iter(places.others), None)
        if found is None and is_served(began.places.get(role, "")):
            raise _unconfirmed(role, began.places[role], folder)
        return found
    for place in places.others:
        with suppress(ArbitrageError):  # a file that cannot be read is another one
            if _is_same(place, model):
                return place
    before = began.places.get(role, model.name)
    if model.served:
        raise _unconfirmed(role, before, folder)
    if local_files(before):
        raise _changed(role, before)
    hint = f"add --{role} with its current path, or use another --output"
    raise UsageError(f"{_shown(before, model.sha256)}: not found; this run began with it", hint, option=role)


def _is_same(place: str, model: ModelSetup) -> bool:
    """Return whether the run's model is at a place. The model of a server is compared later, when the server is asked."""
    if model.served or is_served(place):
        return model.served is not None and is_served(place)
    if model.sha256 is None:  # of a registered backend, or not on this machine when the run began
        return label_of(place) == model.name
    files = local_files(place)
    return bool(files) and sha256_seen(files) == model.sha256


def _another(role: ModelRole, place: str, model: ModelSetup, began: Run) -> ArbitrageError:
    if is_served(place) or model.served:
        return differs(role, model.name, label_of(place))
    files = local_files(place)
    if not files and not backend_of(place):
        return no_such_file(place)
    if began.places.get(role) in (place, str(Path(place).absolute())):
        return _changed(role, place)
    return differs(role, _shown(model.name, model.sha256), _shown(place, sha256_seen(files) if files else None))


def _changed(role: ModelRole, place: str) -> UsageError:
    hint = "restore the file, or use another --output"
    return UsageError(f"{place}: the file changed since this run began", hint, option=role)


def _unconfirmed(role: ModelRole, address: str, folder: Path) -> UsageError:
    """Return the error that only run.json names a server, to which questions and an API key would be sent."""
    host = "its server"
    with suppress(UsageError):
        host = Address.parse(address).host
    return UsageError(
        f"{folder}: the {word_for(role)} of this run is on {host}, a server that only this folder names",
        f"if you trust it, add --{role} with its URL, or use another --output",
        option=role,
    )


def _as_decided(role: ModelRole, served: ServedSource, model: ModelSetup | None) -> ServedSource:
    """Return a model on a server, with the settings of the run. Raises UsageError if the pair has another chat template."""
    if model is None or model.served is None:
        return served
    if template_sha256(served) != model.served.template_sha256:
        hint = "restore the template in pairs.toml, or use another --output"
        raise UsageError(f"the {word_for(role)}'s chat template changed since this run began", hint, option=role)
    return replace(served, context_size=model.context_size, continuation=model.served.continuation)


def _router_of_run(options: Options, began: Run, pair: PairEntry | None, task: Task) -> NamedRouter | None:
    """Return the router of the run. A run without a router gets the one that is named now, if a policy needs it."""
    before = began.decided.router
    if before is None:
        named = options.router if "router" in options.explicit else began.places.get("router", options.router)
        return router_of(replace(options, router=named), pair, task)
    if "router" in options.explicit:
        now = router_of(options, pair, task)
        if now and now.router.sha256 != before.sha256:
            raise differs("router", _shown(before.name, before.sha256), _shown(now.router.card.name, now.router.sha256))
        return now
    for source in (options.router, pair.router if pair else None, began.places.get("router"), *shipped_routers()):
        with suppress(ArbitrageError):  # a file that cannot be read is another one
            if source and (found := NamedRouter.of(source)).router.sha256 == before.sha256:
                return found
    hint = "add --router with its current path, or use another --output"
    raise UsageError(f"{_shown(before.name, before.sha256)}: not found; this run began with it", hint, option="router")


def _shown(name: str, sha256: str | None) -> str:
    return f"{name} (sha256 {sha256[:12]})" if sha256 else name


# --- its policies


def added_policies(
    parsed: Sequence[ParsedRoute], typed: frozenset[str], began: Run, router: AvailableRouter, *, compares: bool
) -> list[ParsedRoute]:
    """Return the policies that were typed and that the run does not have.

    Raises UsageError if the run has a single policy, and another one was typed.
    """
    if not typed.intersection(ROUTING):
        return []
    new = [one for one in parsed if find_route(one, began.routes, router) is None]
    if not new or compares:
        return new
    (policy, tau), route = new[0], began.routes[0]
    if policy is route.policy:
        raise differs("tau", route.label.partition("@")[2], tau)
    raise differs("policy", route.label, policy.name)


def find_route(parsed: ParsedRoute, routes: Iterable[Route], router: AvailableRouter) -> Route | None:
    """Return the route of a run that was written in the same way, or has the same tau."""
    known = [route for route in routes if route.policy is parsed[0]]
    name = preset_or_budget(*parsed)
    if named := [route for route in known if name and route.tau_name == name]:
        return named[0]
    return next((route for route in known if route == make_route(*parsed, router)), None)


def check_data_set(before: DataSet | None, now: Dataset) -> None:
    """Raise UsageError unless the data set is that of the run, possibly with more problems at its end."""
    if before and before.sha256 != now.sha256_of_first(before.count):
        begun, other = _shown(before.name, before.sha256), _shown(now.name, now.sha256)
        hint = "use the problems with which it began, in the same order, or another --output"
        raise UsageError(f"this run began with {begun}, not with {other}", hint, option="dataset")
