"""Makes the entry for pairs.toml with which later commands use the models and settings of a request."""

import os
from dataclasses import replace
from pathlib import Path

from arbitrage_cli.app.asking.naming import absolute_place
from arbitrage_cli.app.asking.request import Request
from arbitrage_cli.inference.servers.address import variable_of_key
from arbitrage_cli.model_files.pairs import ModelEntry, PairEntry
from arbitrage_cli.numbers import formatting
from arbitrage_cli.types import ModelRole


def entry_of(request: Request, name: str) -> PairEntry:
    """Return the entry of a pair with this name, without a policy. Its paths are absolute, and it contains no API key."""
    named, pair, system = request.named, request.named.pair, request.options.system
    prm, router, load = named.sources.get("prm"), named.router, named.load
    return PairEntry(
        name,
        draft=_model(request, "draft"),
        target=_model(request, "target"),
        check=_model(request, "check") if "check" in named.sources else None,
        prm=absolute_place(prm) if prm else None,
        router=absolute_place(router.source) if router else None,
        ctx=load.context_size,
        system=pair.system if pair and system is None else system,
        chat_template_kwargs=dict(load.template_variables) or None,
        thinking_pair=pair.thinking_pair if pair else None,
        notes=f"saved by arbitrage advise on {formatting.timestamp()[:10]}",
    )


def _model(request: Request, role: ModelRole) -> ModelEntry:
    """Return the entry of a model: what the pair says of it, and the variable of its API key. Prices are those of the advice."""
    named = request.named
    source, served = named.sources[role], named.served.get(role)
    entry = named.entries.get(role) or ModelEntry(source)
    variable = variable_of_key(role, entry.api_key_env, os.environ) if served and served.key else None
    prices = dict(part.split("=") for part in named.price.split(",")) if named.price else {}
    return replace(
        entry,
        source=absolute_place(source),
        api_key_env=variable or entry.api_key_env,
        template=str(Path(entry.template).expanduser().absolute()) if entry.template else None,
        price=prices.get(role),
    )
