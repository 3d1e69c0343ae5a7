"""Gathers what `app.decide` needs to know: files, token costs, what servers and chat templates say, and this machine."""

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from arbitrage_cli.app.decide import Facts, ModelFacts
from arbitrage_cli.app.loaded import RemoteModel
from arbitrage_cli.app.request import WRITING, Request
from arbitrage_cli.app.resume import settings_of
from arbitrage_cli.costs.store import (
    AdvisedPair,
    StoredAdvice,
    Tuned,
    find_measurements,
    loading_of,
    machine_here,
    read_cache,
    threads_without_costs,
    tuned_file,
)
from arbitrage_cli.errors import ArbitrageError, TemplateError
from arbitrage_cli.inference.chat_template import INSTRUCTIONS, ChatPrompt, PromptStyle
from arbitrage_cli.inference.llama import binding_version
from arbitrage_cli.inference.open import load_llama
from arbitrage_cli.inference.thinking import FORMATS
from arbitrage_cli.model_files.checksums import sha256_seen
from arbitrage_cli.model_files.gguf import read_facts, read_header
from arbitrage_cli.model_files.pairs import is_gguf, is_served, local_files
from arbitrage_cli.routing.route import parse_route
from arbitrage_cli.system.machine import logical_processors, processor_name
from arbitrage_cli.types import ModelRole

OpenServed = Callable[[ModelRole], RemoteModel | None]


def gather(
    request: Request,
    measured: Mapping[ModelRole, Tuned] | None = None,
    open_served: OpenServed = lambda role: None,
) -> Facts:
    """Return the facts about the request's models. By default, `measured` contains the stored costs, and no server is asked.

    Raises ModelFileError if a file cannot be read, and the same errors as
    `open_served`.
    """
    policies, advice, notes = request.asked, None, list[str]()
    if request.is_default:
        try:
            if advice := _find_advice(request):
                policies = [*policies, parse_route(advice.route)[0]]
        except ArbitrageError as error:
            advice, notes = None, [f"the stored advice is ignored: {error.message}"]
    try:
        sources = request.models_for(policies)
    except ArbitrageError:  # of the advice, which `decide` ignores
        sources = request.models_for(request.asked)
    load = request.named.load
    measured = find_measurements(sources, load) if measured is None else measured
    models = {role: _model_facts(request, role, sources[role], measured.get(role), open_served) for role in sources}
    machine = machine_facts(computes=any(map(is_gguf, sources.values())))
    return Facts(models, machine, logical_processors(), advice, notes)


def machine_facts(*, computes: bool) -> dict[str, Any]:
    """Describe the machine. `computes` is false if all models are on servers."""
    return {
        "cpu": processor_name(),
        "gpu": (load_llama().gpu_names() or "none") if computes else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "llama_cpp_python": binding_version(),
    }


def advised_pair(request: Request, price: str | None = None) -> AdvisedPair:
    """Return the conditions for an advice on these models, at this price or the pair's.

    Raises ModelUnsupportedError if a model runs in llama.cpp, and llama.cpp cannot be imported.
    """
    named = request.named
    models: dict[ModelRole, str] = {
        role: sha256_seen(files) if (files := local_files(source)) else source
        for role, source in named.sources.items()
        if role != "prm"
    }
    machine = None if named.served.keys() >= models.keys() else machine_here()
    settings = {
        **settings_of(request.options),
        "price": price or named.price,
        "system": request.system,
        "chat_template_kwargs": dict(named.load.template_variables),
    }
    router = named.router.sha256 if named.router else None
    return AdvisedPair(machine, loading_of(named.load), models, router, request.task.name, settings)


def _find_advice(request: Request) -> StoredAdvice | None:
    known = read_cache(tuned_file()).advice
    pair = advised_pair(request) if known else None
    return next((one for one in known if one.pair == pair), None)


def _model_facts(
    request: Request, role: ModelRole, source: str, measured: Tuned | None, open_served: OpenServed
) -> ModelFacts:
    load, files = request.named.load, local_files(source)
    has_thoughts = role == "check" or (role in WRITING and request.options.think_tokens == 0)
    if is_served(source):
        remote = open_served(role)
        prompt = remote.prompt(request.style) if remote and has_thoughts else None
        return ModelFacts(source, prompt=prompt, served=remote.served_facts() if remote else None)
    facts = read_facts(files) if files else None
    return ModelFacts(
        source,
        files,
        sum(file.stat().st_size for file in files),
        sha256_seen(files) if files and is_gguf(source) else None,
        facts.trained_context_size if facts else None,
        measured.threads if measured else threads_without_costs(source, load),
        measured.costs if measured else None,
        prompt_of(files[0], load.template_variables, request.system) if files and has_thoughts else None,
    )


def prompt_of(path: Path, variables: Mapping[str, Any], instructions: str = INSTRUCTIONS) -> ChatPrompt | None:
    """Return the prompt of a file whose chat template has a thinking format, otherwise None."""
    template = read_header(path).metadata.get("tokenizer.chat_template")
    if not isinstance(template, str) or not any(form.end in template for form in FORMATS.values()):
        return None
    try:
        return ChatPrompt(template, None, (), PromptStyle(instructions), variables)
    except TemplateError:  # loading the model reports the error with the model's name
        return None
