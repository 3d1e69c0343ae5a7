"""Gathers the facts for `app.deciding.decide`: files, token costs, facts from servers and chat templates, and this machine.

`app.deciding.prepare` downloads missing files and measures missing token costs first.
"""

import platform
from collections.abc import Callable
from pathlib import Path

from arbitrage_cli.app.asking.naming import label_of, router_now, template_sha256
from arbitrage_cli.app.asking.request import Request
from arbitrage_cli.app.deciding.decide import ModelFacts, RequestFacts
from arbitrage_cli.app.deciding.prepare import fetch, measure_missing
from arbitrage_cli.app.models import RemoteModel
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.costs.store import (
    Tuned,
    find_measurements,
    threads_without_costs,
)
from arbitrage_cli.errors import TemplateError
from arbitrage_cli.inference.chat_template import INSTRUCTIONS, ChatPrompt, PromptStyle
from arbitrage_cli.inference.llama import binding_version
from arbitrage_cli.inference.open import load_llama
from arbitrage_cli.inference.servers.address import ServedSource
from arbitrage_cli.inference.thinking import FORMATS
from arbitrage_cli.model_files.checksums import sha256_seen
from arbitrage_cli.model_files.gguf import read_facts, read_header
from arbitrage_cli.model_files.pairs import is_gguf, is_served, local_files
from arbitrage_cli.runs.run import ModelSetup, ServedSetup
from arbitrage_cli.system.machine import processor_name
from arbitrage_cli.types import WRITING, ByRole, Fields, Json, ModelRole

OpenServed = Callable[[ModelRole], RemoteModel | None]


def fetch_and_gather(
    request: Request,
    display: Display,
    open_served: OpenServed,
    cost_seconds: float | None = None,
) -> RequestFacts:
    """Return the facts about the request's models, after missing files are downloaded and missing costs are measured.

    If the request resumes a run that has all these models, none is measured. The servers of the run's models are not asked.
    The probes take at most `cost_seconds`.
    """
    known = request.run.decided.models if request.run else {}
    sources = _with_models_of_run(request, request.models_for(request.asked))
    paths = fetch(sources, display, offline=request.options.offline)
    measured = None if paths.keys() <= known.keys() else measure_missing(request, paths, display, cost_seconds)
    return gather(request, measured, lambda role: None if role in known else open_served(role))


def _with_models_of_run(request: Request, needed: ByRole[str]) -> ByRole[str]:
    """Return the models that are needed, and those of the run that the request resumes."""
    known = request.run.decided.models if request.run else {}
    return {role: source for role, source in request.named.sources.items() if role in needed or role in known}


def gather(
    request: Request,
    measured: ByRole[Tuned] | None = None,
    open_served: OpenServed = lambda role: None,
) -> RequestFacts:
    """Return the facts about the request's models. By default, `measured` contains the stored costs, and no server is asked.

    Raises ModelFileError if a file cannot be read, and the same errors as `open_served`.
    """
    sources = _with_models_of_run(request, request.models_for(request.asked))
    router = router_now(request.named, request.task)
    if measured is None:
        measured = find_measurements(sources, request.named.load)
    models = {role: model_facts(request, role, open_served, measured.get(role)) for role in sources}
    machine = machine_facts(computes=any(map(is_gguf, sources.values())))
    return RequestFacts(models, machine, router)


def machine_facts(*, computes: bool) -> Json:
    """Describe the machine. `computes` is false if all models are on servers."""
    return {
        "cpu": processor_name(),
        "gpu": (load_llama().gpu_names() or "none") if computes else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "llama_cpp_python": binding_version(),
    }


def model_facts(request: Request, role: ModelRole, open_served: OpenServed, measured: Tuned | None = None) -> ModelFacts:
    """Return the facts about a model. Raises the same errors as `gather`."""
    source, load = request.named.sources[role], request.named.load
    files = local_files(source)
    asked = request.options.thinking
    is_told = asked is not None and asked.is_on and not request.options.has_quick_answers
    has_thoughts = role == "check" or (role in WRITING and not is_told)
    if is_served(source):
        remote = open_served(role)
        prompt = remote.prompt(request.style) if remote and has_thoughts else None
        setup = _served_setup(source, request.named.served[role], remote)
        if remote is None:
            return ModelFacts(setup)
        return ModelFacts(setup, prompt, cannot_continue=remote.cannot_continue, sends_token_stats=remote.sends_token_stats)
    facts = read_facts(files) if files else None
    setup = ModelSetup(
        name=label_of(source),
        size=sum(file.stat().st_size for file in files) or None,
        sha256=sha256_seen(files) if files and is_gguf(source) else None,
        architecture=facts.architecture if facts else None,
        num_parameters=facts.num_parameters if facts else None,
        vocabulary_size=facts.vocabulary_size if facts else None,
        threads=measured.threads if measured else threads_without_costs(source, load),
        costs=measured.costs if measured else None,
        costs_are_approximate=measured is not None and measured.is_disturbed,
    )
    return ModelFacts(
        setup,
        prompt_of(files[0], load.template_variables, request.system) if files and has_thoughts else None,
        facts.trained_context_size if facts else None,
        has_files=bool(files),
    )


def _served_setup(source: str, served: ServedSource, remote: RemoteModel | None) -> ModelSetup:
    """Return what a model on a server is: what the server reports, if it was asked, and how the model is prompted."""
    facts = dict(remote.served_facts) if remote else None
    name = str(facts["model"]) if facts else label_of(source)
    about = ServedSetup(facts=facts, template_sha256=template_sha256(served))
    return ModelSetup(name=name, served=about)


def prompt_of(path: Path, variables: Fields, instructions: str = INSTRUCTIONS) -> ChatPrompt | None:
    """Return the file's prompt if its chat template has a thinking format, otherwise None."""
    template = read_header(path).metadata.get("tokenizer.chat_template")
    if not isinstance(template, str) or not any(form.end in template for form in FORMATS.values()):
        return None
    try:
        return ChatPrompt(template, None, (), PromptStyle(instructions), variables)
    except TemplateError:  # loading the model reports the error with the model's name
        return None
