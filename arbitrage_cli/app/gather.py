"""Gathers the facts for `app.decide`: files, token costs, facts from servers and chat templates, and this machine.

Missing files are downloaded, and missing token costs are measured.
"""

import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from arbitrage_cli.app.decide import ModelFacts, RequestFacts
from arbitrage_cli.app.models import RemoteModel
from arbitrage_cli.app.naming import NamedModels, NamedRouter, label_of, router_for, template_sha256, writing
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.app.request import Request
from arbitrage_cli.app.resume import settings_of
from arbitrage_cli.app.token_ids import refuse_other_token_ids
from arbitrage_cli.costs.measure import PROBE_SECONDS, measure_and_keep
from arbitrage_cli.costs.store import (
    AdvisedPair,
    StoredAdvice,
    Tuned,
    find_measurements,
    keep_tuned,
    loading_of,
    machine_here,
    read_cache,
    threads_without_costs,
    tuned_file,
)
from arbitrage_cli.errors import ArbitrageError, ModelFileError, TemplateError, UsageError
from arbitrage_cli.inference.chat_template import INSTRUCTIONS, ChatPrompt, PromptStyle
from arbitrage_cli.inference.llama import binding_version
from arbitrage_cli.inference.open import load_llama
from arbitrage_cli.inference.servers.address import ServedSource
from arbitrage_cli.inference.thinking import FORMATS
from arbitrage_cli.model_files.checksums import known_sha256, sha256_seen
from arbitrage_cli.model_files.gguf import read_facts, read_header
from arbitrage_cli.model_files.pairs import find_files, hub_name, is_gguf, is_served, local_files, no_such_file
from arbitrage_cli.routing.route import parse_route
from arbitrage_cli.runs.run import ModelSetup, ServedSetup
from arbitrage_cli.system.machine import free_cores, processor_name
from arbitrage_cli.types import WRITING, ByRole, Fields, Json, ModelRole

OpenServed = Callable[[ModelRole], RemoteModel | None]


def fetch_and_gather(
    request: Request,
    display: Display,
    open_served: OpenServed,
    cost_seconds: float | None = None,
) -> RequestFacts:
    """Return the facts about the request's models, after missing files are downloaded and missing costs are measured.

    If the request continues a run that has all these models, none is measured. The servers of the run's models are not asked.
    The probes take at most `cost_seconds`.
    """
    known = request.began.run.decided.models if request.began else {}
    sources = _with_models_of_run(request, request.models_for(request.asked))
    paths = fetch(sources, display, offline=request.options.offline)
    refuse_other_token_ids(request.asked, {role: local_files(path) for role, path in paths.items()})
    measured = None if paths.keys() <= known.keys() else measure_missing(request, paths, display, cost_seconds)
    return gather(request, measured, lambda role: None if role in known else open_served(role))


def _with_models_of_run(request: Request, needed: ByRole[str]) -> ByRole[str]:
    """Return the models that are needed, and those of the run that the request continues."""
    known = request.began.run.decided.models if request.began else {}
    return {role: source for role, source in request.named.sources.items() if role in needed or role in known}


def gather(
    request: Request,
    measured: ByRole[Tuned] | None = None,
    open_served: OpenServed = lambda role: None,
) -> RequestFacts:
    """Return the facts about the request's models. By default, `measured` contains the stored costs, and no server is asked.

    Raises ModelFileError if a file cannot be read, and the same errors as `open_served`.
    """
    sources, advice, notes = _with_models_of_run(request, request.models_for(request.asked)), None, list[str]()
    router = router_of_request(request)
    if request.is_default and not request.began:
        try:
            if advice := _find_advice(request, router):
                sources = request.models_for([*request.asked, parse_route(advice.route)[0]])
        except ArbitrageError as error:
            advice, notes = None, [f"the stored advice is ignored: {error.message}"]
    load = request.named.load
    measured = find_measurements(sources, load) if measured is None else measured
    models = {role: model_facts(request, role, open_served, measured.get(role)) for role in sources}
    machine = machine_facts(computes=any(map(is_gguf, sources.values())))
    return RequestFacts(models, machine, router, advice, notes)


def router_of_request(request: Request) -> NamedRouter | None:
    """Return the router that was named or, if none was, the router for the models' files on this machine."""
    named = request.named
    return router_for(named.sources, request.task) if named.router is None and named.finds_router else named.router


def machine_facts(*, computes: bool) -> Json:
    """Describe the machine. `computes` is false if all models are on servers."""
    return {
        "cpu": processor_name(),
        "gpu": (load_llama().gpu_names() or "none") if computes else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "llama_cpp_python": binding_version(),
    }


def advised_pair(request: Request, router: NamedRouter | None) -> AdvisedPair:
    """Return the conditions under which advice on these models is valid.

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
        **settings_of(replace(request.options, task=None)),  # the data set may have named the task
        "price": named.price,
        "system": request.system,
        "chat_template_kwargs": dict(named.load.template_variables),
        "served": {role: [template_sha256(one), one.continuation] for role, one in named.served.items()},
    }
    sha256 = router.router.sha256 if router else None
    return AdvisedPair(machine, loading_of(named.load), models, sha256, request.task.name, settings)


def _find_advice(request: Request, router: NamedRouter | None) -> StoredAdvice | None:
    known = read_cache(tuned_file()).advice
    pair = advised_pair(request, router) if known else None
    found = next((one for one in known if one.pair == pair), None)
    if pair and not found:
        _check_absent_models(pair, request.named.sources, known)
    return found


def _check_absent_models(pair: AdvisedPair, sources: ByRole[str], known: Sequence[StoredAdvice]) -> None:
    """Raise ModelFileError if stored advice may apply to this pair, but a model of the pair is not on this machine."""
    absent = {role: source for role, source in sources.items() if hub_name(source) and not local_files(source)}
    for advice in known if absent else ():
        models = {role: pair.models[role] if role in absent else sha256 for role, sha256 in advice.pair.models.items()}
        if replace(advice.pair, models=models) == pair:
            names = " ".join(absent.values())
            raise ModelFileError(f"{names}: not on this machine; to download, use arbitrage models pull {names}")


def model_facts(request: Request, role: ModelRole, open_served: OpenServed, measured: Tuned | None = None) -> ModelFacts:
    """Return the facts about a model. Raises the same errors as `gather`."""
    source, load = request.named.sources[role], request.named.load
    files = local_files(source)
    has_thoughts = role == "check" or (role in WRITING and request.options.think_tokens == 0)
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
    about = ServedSetup(facts=facts, template_sha256=template_sha256(served), continuation=served.continuation)
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


# --- downloading and measuring


def measure_costs(named: NamedModels, display: Display, *, offline: bool) -> dict[ModelRole, Tuned]:
    """Measure and store the unit costs of both models.

    Raises UsageError if llama.cpp cannot run a model on this machine; OutputError if the costs cannot be stored.
    """
    for source in writing(named.sources).values():
        if not is_gguf(source):
            raise UsageError(f"{source}: llama.cpp cannot run this model", "use a GGUF file or a model on the Hub")
    paths = fetch(writing(named.sources), display, offline=offline)
    keep_tuned(tuned_file(), [])  # fail before measuring if the file cannot be written
    return measure_and_keep(paths, named.load, display.loading, display.note)


def measure_missing(
    request: Request,
    found: ByRole[str],
    display: Display,
    cost_seconds: float | None,
) -> ByRole[Tuned]:
    """Return the costs of the request's models, which `fetch` has found. Missing costs are measured and stored.

    Costs are measured only if a policy of the request depends on them or is compared with others. The costs of a checker are
    measured only for a policy that uses it. `cost_seconds` is the maximum time for the probes. A disturbed measurement
    does not replace known costs.
    """
    load = request.named.load
    uses_checker = request.compares or any(policy.compares_answers for policy in request.asked)
    others = {"prm"} if uses_checker else {"prm", "check"}
    paths: dict[ModelRole, str] = {role: path for role, path in found.items() if role not in others and is_gguf(path)}
    known = find_measurements(paths, load, display.note)
    depends_on_costs = (
        policy.speculates or policy.compares_answers or (policy.routes_steps and policy.is_candidate)
        for policy in request.asked
    )
    is_needed = request.compares or any(depends_on_costs)
    if not is_needed or not {"draft", "target"} <= paths.keys() or known.keys() == paths.keys():
        return known
    seconds = math.ceil(cost_seconds or PROBE_SECONDS)
    display.tell(f"measuring the token costs of these models on this machine, which takes up to {seconds} s")
    measured = measure_and_keep(paths, load, display.loading, display.note, cost_seconds)
    return {role: known.get(role, one) if one.is_disturbed else one for role, one in measured.items()}


def warn_of_load(threads_of: ByRole[int], display: Display) -> None:
    """Note that other programs use the cores of models with several threads."""
    threads = max(threads_of.values(), default=1)
    if threads > 1 and (free := free_cores()) < threads:
        display.note(
            f"other programs are using the processor, so {threads} threads may be slower than {free}; "
            f"to use fewer, add --threads {free}"
        )


def fetch(sources: ByRole[str], display: Display, *, offline: bool) -> dict[ModelRole, str]:
    """Download missing files. Return each model's first file, or its name if it has no file.

    Raises ModelFileError if a file does not exist, is damaged or is not a GGUF model; HubError if a download fails.
    """
    files_of: dict[ModelRole, tuple[Path, ...]] = {}
    for role, source in sources.items():
        files_of[role] = find_files(source, offline=offline, on_progress=display.fetching)
        if files_of[role] and not local_files(source):
            raise no_such_file(source)
        for part in local_files(source):
            read_header(part)
    for files in filter(None, files_of.values()):  # large files are read last
        known_sha256(files, lambda progress: display.fetching(replace(progress, activity="hashing")))
    return {role: str(files[0]) if files else sources[role] for role, files in files_of.items()}
