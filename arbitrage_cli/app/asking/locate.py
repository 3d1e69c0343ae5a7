"""Finds the models and the router of a run that is resumed where they lie now.

A model is identified by its checksum or by what its server reports, so its location may change. A model that is typed must be
that of the run. Otherwise, the model is searched for in the settings, in the pair, and at its old place, in this order. Only
old places on this machine count, because run.json may come from somebody else: it never chooses a server, an API key or a
download.
"""

from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from arbitrage_cli.app.asking.naming import (
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
from arbitrage_cli.app.asking.resume import Resumed, asked_value, differs, with_checksum
from arbitrage_cli.app.options import Options
from arbitrage_cli.errors import ArbitrageError, UsageError
from arbitrage_cli.inference.servers.address import Address, ServedSource
from arbitrage_cli.model_files.checksums import sha256_seen
from arbitrage_cli.model_files.pairs import (
    PairEntry,
    backend_of,
    hub_name,
    is_served,
    local_files,
    no_such_file,
)
from arbitrage_cli.problems.tasks import Task
from arbitrage_cli.routing.router import RouterCard
from arbitrage_cli.runs.run import ModelSetup, RouterSetup, Run
from arbitrage_cli.types import ROLES, ModelRole


def models_of_run(options: Options, resumed: Resumed, needed: Collection[str], task: Task) -> NamedModels:
    """Return the models of a run, each at its current place, and its router. Those in `needed` must be found.

    Raises UsageError if another model or router is typed, or one that is needed is not found; ModelFileError if a file that
    is typed cannot be read; HubError if it cannot be downloaded.
    """
    run, pair = resumed.run, _pair_of_run(options, resumed.run)
    sources: dict[ModelRole, str] = {}
    for role in ROLES:
        if place := _place_of(role, options, pair, resumed):
            sources[role] = place
        elif role in needed and (role in run.places or role in run.decided.models):
            raise _not_found(role, resumed)
    settings = run.decided.settings
    size = pair.ctx if pair and options.ctx is None else options.ctx
    load = replace(settings.load, threads=options.threads, context_size=size)
    entries = entries_of(pair, sources)
    served = served_sources(sources, entries, load)
    is_whole = pair is not None and all(pair.sources.get(role) == source for role, source in sources.items())
    return NamedModels(
        pair if is_whole else None,
        sources,
        _router_of_run(options, run, pair, task, is_needed="router" in needed),
        finds_router=run.decided.router is None and task.name != "code" and not any(map(backend_of, sources.values())),
        load=load,
        served={role: _as_decided(role, one, run.decided.models.get(role)) for role, one in served.items()},
        price=run.decided.price,
        entries=entries,
    )


def _pair_of_run(options: Options, run: Run) -> PairEntry | None:
    """Return the pair that was typed or, as it is defined today, that of the run, if it still exists."""
    if "pair" in options.explicit:
        return choose_pair(replace(options, draft=None, target=None))
    asked = run.asked.options
    name = asked_value(run, options, "pair")
    if asked.get("draft") and asked.get("target") and not name:
        return None
    with suppress(UsageError):
        return choose_pair(replace(options, pair=name, draft=None, target=None))
    return None


# --- a model


def _place_of(role: ModelRole, options: Options, pair: PairEntry | None, resumed: Resumed) -> str | None:
    """Return where the run's model lies, or None if it is not found, or if the run has no such model.

    Raises UsageError if another model is typed.
    """
    run, model = resumed.run, resumed.run.decided.models.get(role)
    if _began_without(role, run):
        if role in options.explicit:
            raise differs(role, None, getattr(options, role))
        return None
    if typed := _typed_place(role, options, pair):
        resumed.fetch(typed)
        if model and not _is_same(typed, model):
            raise _another(role, typed, model, run)
        return typed
    today = [place for place in (getattr(options, role), pair.sources.get(role) if pair else None) if place]
    before = [place for place in (run.places.get(role),) if place and _is_here(place)]
    if model:
        return _first_same([*today, *before], model)
    return next(iter([*before, *today]), None)  # it has no checksum yet, and what was typed when the run began counts


def _typed_place(role: ModelRole, options: Options, pair: PairEntry | None) -> str | None:
    if role in options.explicit:
        place: str | None = getattr(options, role)
        return place
    return pair.sources.get(role) if pair and "pair" in options.explicit else None


def _began_without(role: ModelRole, run: Run) -> bool:
    """Return whether a policy of the run uses such a model if there is one, and the run began without."""
    return role not in run.decided.models and any(role in route.policy.models for route in run.routes)


def _is_here(place: str) -> bool:
    """Return whether a place of run.json is on this machine, so that nothing has to be sent or downloaded."""
    return not is_served(place) and (hub_name(place) is None or bool(local_files(place)))


def _first_same(places: Iterable[str], model: ModelSetup) -> str | None:
    for place in places:
        with suppress(ArbitrageError):  # a file that cannot be read is another one
            if _is_same(place, model):
                return place
    return None


def _is_same(place: str, model: ModelSetup) -> bool:
    """Return whether the run's model is at a place. The model of a server is compared later, when the server is asked."""
    if model.served or is_served(place):
        return model.served is not None and is_served(place)
    if model.sha256 is None:  # of a registered backend, or not on this machine when the run began
        return label_of(place) == model.name
    files = local_files(place)
    return bool(files) and sha256_seen(files) == model.sha256


def _as_decided(role: ModelRole, served: ServedSource, model: ModelSetup | None) -> ServedSource:
    """Return a model on a server, with the settings of the run. Raises UsageError if the pair has another chat template."""
    if model is None or model.served is None:
        return served
    if template_sha256(served) != model.served.template_sha256:
        hint = "restore the template in pairs.toml, or use another --output"
        raise UsageError(f"the {word_for(role)}'s chat template changed since this run began", hint, option=role)
    return replace(served, context_size=model.context_size)


# --- the errors of a model


def _another(role: ModelRole, place: str, model: ModelSetup, run: Run) -> ArbitrageError:
    """Return the error that another model than that of the run is typed."""
    if is_served(place) or model.served:
        return differs(role, model.name, label_of(place))
    files = local_files(place)
    if not files and not backend_of(place):
        return no_such_file(place)
    if run.places.get(role) in (place, str(Path(place).absolute())):
        return _changed(role, place)
    return differs(
        role, with_checksum(model.name, model.sha256), with_checksum(place, sha256_seen(files) if files else None)
    )


def _not_found(role: ModelRole, resumed: Resumed) -> UsageError:
    """Return the error that a model of the run is not found. It names the option that finds it."""
    model = resumed.run.decided.models.get(role)
    before = resumed.run.places.get(role, model.name if model else "")
    if is_served(before) or (model and model.served):
        return _unconfirmed(role, before, resumed.folder)
    if local_files(before):
        return _changed(role, before)
    hint = f"add --{role} with its current path, or use another --output"
    name = with_checksum(before, model.sha256 if model else None)
    return UsageError(f"{name}: not found; this run began with it", hint, option=role)


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


# --- the router


def _router_of_run(options: Options, run: Run, pair: PairEntry | None, task: Task, *, is_needed: bool) -> NamedRouter | None:
    """Return the router of the run, or the one that is named now if a policy needs the first router of the run.

    Raises UsageError if another router is typed, or a router that is needed is not found.
    """
    decided, is_typed = run.decided.router, "router" in options.explicit
    if decided is None:
        named = options.router if is_typed else run.places.get("router", options.router)
        return router_of(replace(options, router=named), pair, task) if is_needed else None
    if is_typed:
        found = router_of(options, pair, task)
        if found and found.router.sha256 != decided.sha256:
            raise differs(
                "router",
                with_checksum(decided.name, decided.sha256),
                with_checksum(found.router.card.name, found.router.sha256),
            )
        return found
    places = [options.router, pair.router if pair else None, run.places.get("router")]
    found = _first_router(filter(None, places), decided)
    if found is None and is_needed:
        hint = "add --router with its current path, or use another --output"
        name = with_checksum(decided.name, decided.sha256)
        raise UsageError(f"{name}: not found; this run began with it", hint, option="router")
    return found


def card_of_run(run: Run) -> RouterCard | None:
    """Return the card of the run's router, or None if the run has no router, or if its file is not at its old place."""
    decided, place = run.decided.router, run.places.get("router")
    found = _first_router([place], decided) if decided and place else None
    return found.router.card if found else None


def _first_router(places: Iterable[str], decided: RouterSetup) -> NamedRouter | None:
    for place in places:
        with suppress(ArbitrageError):  # a file that cannot be read is another one
            if (found := NamedRouter.of(place)).router.sha256 == decided.sha256:
                return found
    return None
