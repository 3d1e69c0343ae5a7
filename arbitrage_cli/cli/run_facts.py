"""What a benchmark is made with, as run.json tells it, and which of it a run that goes on must share.

Everything that results depend on is known before a model is loaded, so that a run that cannot go on is refused at once.
"""

import hashlib
import importlib.metadata
import json
import platform
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from arbitrage_cli import __version__
from arbitrage_cli.cli.sources import reward_needed
from arbitrage_cli.data.rows import DataSet
from arbitrage_cli.errors import UsageError
from arbitrage_cli.evaluation.benchmark import PolicyAtTau
from arbitrage_cli.inference.backend import Backend, Options
from arbitrage_cli.inference.open import load_llama
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.step_text import SEPARATOR
from arbitrage_cli.model_files.facts import read_facts
from arbitrage_cli.model_files.pairs import is_toy, local_files
from arbitrage_cli.routing.head import Head
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.thresholds import NamedTaus
from arbitrage_cli.runs.folder import COLLECT, SCHEMA, RunFolder
from arbitrage_cli.runs.records import label, tau_in_json
from arbitrage_cli.system.files import digest
from arbitrage_cli.system.machine import processor_name
from arbitrage_cli.types import DEFAULT_CONTEXT_SIZE, Limits, ModelRole

SHARED_THREADS = "number of threads"  # in the fingerprint of a run that an earlier version made
NO_GPU = "none"
WITHOUT_GPU = "without GPU support"  # so begin the flags of a machine, which all versions recorded
EARLY_STOP = "early stop"  # there was none in runs that do not say
FEATURE_LIST = "list of features"  # in the fingerprint of a collected run
SETTING_ASIDE = ("--fresh",)
SHOWN = 80  # characters of a value that are told as they are; a longer one as its sha256

ONCE: Mapping[str, str] = MappingProxyType({"concurrency": "1", "chat template kwargs": "{}"})
"""What was so in all runs before it was recorded."""

Watch = Callable[[ModelRole, str, float], None]
"""Told of a model whose file is read: its role, what is done, and the fraction of it that is."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a benchmark was asked for. `found` has the models' local paths, as `session.fetch` gives them.

    `concurrency` is None where it makes no difference how many problems are solved at once.
    """

    command: Sequence[str]
    dataset: DataSet
    ids: Sequence[str]  # of the problems to be solved
    columns: Sequence[PolicyAtTau]
    samples: int
    sources: Mapping[ModelRole, str]
    found: Mapping[ModelRole, str]
    load: Options
    threads: Mapping[ModelRole, int]
    sampler: Sampler
    limits: Limits
    system: str
    grader: str
    head: Head | None = None
    stops_early: bool | None = None  # None where no policy can
    reward: str | None = None
    prm_style: str = "turns"
    named_taus: NamedTaus | None = None  # None if no tau was given by name
    concurrency: int | None = None

    @property
    def to_go_on(self) -> str:
        """The command that goes on with the run: the same, but for the flags that set something aside first."""
        return shlex.join(part for part in self.command if part not in SETTING_ASIDE)


def told_features(features: Sequence[str]) -> dict[str, str]:
    """What the fingerprint of a collected run has of its features: their names and their order."""
    return {FEATURE_LIST: _told(list(features))}


def run_facts(setup: Setup, watch: Watch) -> dict[str, Any]:
    """The content of run.json, but for what only a loaded model says (`add_loaded`). Reads every model's files whole.

    Errors: ModelFileError.
    """
    models: dict[str, Any] = {role: _model_facts(setup, role, watch) for role in setup.sources}
    named = setup.named_taus
    levels = {item.problem.id: item.level for item in setup.dataset.items}
    run: dict[str, Any] = {
        "schema": SCHEMA,
        "tool": __version__,
        "command": list(setup.command),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "dataset": {
            "name": setup.dataset.name,
            "revision": setup.dataset.revision,
            "sha256": setup.dataset.sha256,
            "count": len(setup.dataset.items),
        },
        "planned": len(setup.ids),
        "ids": list(setup.ids),
        "levels": {name: levels[name] for name in setup.ids},
        "policies": [
            {
                "policy": one.policy.name,
                "tau": tau_in_json(one.tau),
                "tau_name": one.tau_name,
                "number": one.policy.number or None,
            }
            for one in setup.columns
        ],
        "models": models,
        "router": _router(setup.head),
        "early_stop": setup.stops_early,
        "tau_costs": named.costs_of if named else None,
        "named_taus": dict(named.taus) if named else None,
        "reward": setup.reward,
        "prm_style": setup.prm_style if "prm" in models else None,
        "grader": setup.grader,
        "prompt": {"system": setup.system, "chat_template_kwargs": setup.load.template_variables},
        "sampling": {**asdict(setup.sampler), "samples": setup.samples},
        "limits": asdict(setup.limits),
        "step_separator": SEPARATOR,
        "context": {"kv_type": setup.load.kv_type},
        "machine": _machine(setup, load_llama().gpu_names() if _computes(models) else ""),
        "warnings": [],
        **({} if setup.concurrency is None else {"concurrency": setup.concurrency}),
    }
    return run | {"machine": _with_threads(run["machine"], models), "fingerprint": _fingerprint(run)}


def add_loaded(run: Mapping[str, Any], backends: Mapping[ModelRole, Backend]) -> dict[str, Any]:
    """The same with what the loaded models say of themselves."""
    models = dict(run["models"])
    for role, backend in backends.items():
        card, template = backend.card, backend.chat_template
        models[role] = models[role] | {
            "name": card.name,
            "description": card.description,
            "kv_cache": card.kv_cache,
            "chat_template_sha256": None if template is None else hashlib.sha256(template.encode()).hexdigest(),
        }
    machine = dict(run["machine"])
    context = dict(run["context"])
    if _computes(models):
        llama = load_llama()
        machine["flags"] = str(llama.system_info())
        context["n_batch"] = llama.BATCH_SIZE
    return {**run, "models": models, "machine": machine, "context": context}


def go_on(earlier: Mapping[str, Any], run: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a run was made with when it goes on: problems, samples, policies and models may be added, nothing else differs.

    UsageError, naming the first thing that does.
    """
    was = _recorded_since(earlier)
    for what, value in run["fingerprint"].items():
        before = was.get(what, ONCE.get(what, value))
        if before != value:
            hint = "give another folder (--output), or begin anew (--fresh), or use what it was made with"
            if what == "grader":
                hint = f"arbitrage grade {folder} grades its answers anew, without any model; then it can go on"
            raise UsageError(f"{folder}: this run was made with another {what}: {before}, not {value}", hint)
    known = {(one["policy"], one["tau"]) for one in earlier["policies"]}
    added = [one for one in run["policies"] if (one["policy"], one["tau"]) not in known]
    ids = list(dict.fromkeys([*earlier["ids"], *run["ids"]]))
    warnings = list(earlier["warnings"])
    if added:
        names = ", ".join(label(one["policy"], one["tau"], one.get("tau_name")) for one in added)
        warnings.append(f"measured later than the others, so the machine may have been faster or slower: {names}")
    if earlier["tool"] != run["tool"]:
        warnings.append(f"made in part with arbitrage {earlier['tool']}, in part with {run['tool']}")
    models = _merged(earlier["models"], run["models"])
    samples = max(earlier["sampling"]["samples"], run["sampling"]["samples"])
    return {
        **run,
        "created": earlier["created"],
        "planned": len(ids),
        "ids": ids,
        "levels": {**earlier.get("levels", {}), **run["levels"]},
        "policies": [*earlier["policies"], *added],
        "router": run["router"] or earlier["router"],
        "early_stop": earlier.get("early_stop") if run["early_stop"] is None else run["early_stop"],
        "tau_costs": run["tau_costs"] or earlier.get("tau_costs"),
        "named_taus": run["named_taus"] or earlier.get("named_taus"),
        "reward": run["reward"] or earlier["reward"],
        "prm_style": run["prm_style"] or earlier.get("prm_style"),
        "models": models,
        "machine": _with_threads({**earlier["machine"], **run["machine"]}, models),
        "context": {**earlier["context"], **run["context"]},
        "sampling": {**run["sampling"], "samples": samples},
        "warnings": list(dict.fromkeys(warnings)),
        "fingerprint": {**was, **run["fingerprint"]},
    }


def kept_early_stop(here: bool | None, given: bool | None, folder: RunFolder) -> bool | None:
    """Whether steps are stopped early in a run: as it is `here`, but if nothing was `given`, as a run with rows has done so far."""
    run = folder.run if folder.rows else None
    if here is None or given is not None or not run:
        return here
    kept = _recorded_since(run).get(EARLY_STOP)
    return here if kept is None else kept == _told(True)


def concurrency_of(folder: RunFolder) -> int | None:
    """How many problems a run solves at once; None before its first row."""
    return (folder.run or {}).get("concurrency", 1) if folder.rows else None


def with_grader(run: Mapping[str, Any], version: str) -> dict[str, Any]:
    """The same, once its rows were graded by another grader."""
    return {**run, "grader": version, "fingerprint": {**run["fingerprint"], "grader": _told(version)}}


def _merged(earlier: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What is known of each model, that of loading it earlier included."""
    return {role: {**earlier.get(role, {}), **now.get(role, {})} for role in {**earlier, **now}}


def _model_facts(setup: Setup, role: ModelRole, watch: Watch) -> dict[str, Any]:
    """What is known of a model before it is loaded; of a demo model only its name."""
    source, wanted = setup.sources[role], setup.load.context_size
    facts: dict[str, Any] = {
        "source": source,
        "file": None,
        "size": None,
        "sha256": None,
        "threads": setup.threads[role],
    }
    if is_toy(source):
        return facts | {"n_ctx": wanted or DEFAULT_CONTEXT_SIZE}
    files = local_files(setup.found[role])
    size, sha256 = digest(files, lambda fraction: watch(role, f"checking {files[0].name}", fraction))
    n_ctx = read_facts(files, wanted).context_size
    return facts | {"file": str(files[0].absolute()), "size": size, "sha256": sha256, "n_ctx": n_ctx}


def _machine(setup: Setup, gpu: str) -> dict[str, Any]:
    return {
        **({"gpu": gpu} if gpu else {}),
        "gpu_layers": setup.load.gpu_layers,
        "flash_attention": setup.load.flash_attention,
        "cpu": processor_name(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "llama_cpp_python": importlib.metadata.version("llama-cpp-python"),
    }


def _with_threads(machine: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The machine with its number of threads: one number if all models have the same, else each model's in words."""
    counts = {role: facts.get("threads", machine.get("threads")) for role, facts in models.items()}
    told = next(iter(counts.values())) if len(set(counts.values())) == 1 else _listed(counts)
    return {"threads": told, **{name: value for name, value in machine.items() if name != "threads"}}


def _listed(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{role} {count}" for role, count in counts.items())


def _recorded_since(earlier: Mapping[str, Any]) -> dict[str, str]:
    """The fingerprint of a run as this version would have made it, as far as the run tells."""
    known: dict[str, str] = {}
    if str(earlier["machine"].get("flags")).startswith(WITHOUT_GPU):
        known["GPU"] = NO_GPU
    if "prm" in earlier["models"]:
        known["prm style"] = earlier.get("prm_style") or "turns"
    asked = [POLICIES[one["policy"]] for one in earlier["policies"] if one["policy"] in POLICIES]
    if "early_stop" not in earlier and any(policy.can_stop_early for policy in asked):
        known[EARLY_STOP] = _told(False)
    told = known | _threads_by_role(earlier["fingerprint"], earlier["models"])
    if earlier.get("kind") == COLLECT:
        return told | told_features(earlier["features"])
    reward = reward_needed(asked, earlier["reward"])  # which may have been given where nothing needed it
    return {name: value for name, value in told.items() if name != "reward"} | ({"reward": reward} if reward else {})


def _computes(models: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether llama.cpp runs one of these models."""
    return not all(is_toy(facts["source"]) for facts in models.values())


def _threads_by_role(fingerprint: Mapping[str, str], models: Iterable[str]) -> dict[str, str]:
    """A fingerprint with a number of threads for each model; earlier versions had one for all."""
    by_role = {name: value for name, value in fingerprint.items() if name != SHARED_THREADS}
    if SHARED_THREADS in fingerprint:
        by_role |= {_threads_of(role): fingerprint[SHARED_THREADS] for role in models}
    return by_role


def _threads_of(role: str) -> str:
    return f"number of threads of the {role}"


def _router(head: Head | None) -> dict[str, Any] | None:
    """Which head it is, and what its card says."""
    return None if head is None else {"name": head.card.name, "sha256": head.sha256, "card": head.card.to_json()}


def _fingerprint(run: Mapping[str, Any]) -> dict[str, str]:
    """What results depend on, by the name a user knows it by. What may grow (problems, samples, policies) is not in it."""
    models, sampling, machine = run["models"], run["sampling"], run["machine"]
    values = {
        "data set": _short(run["dataset"]["sha256"]),
        **{f"{role} model": _short(facts["sha256"]) or facts["source"] for role, facts in models.items()},
        **{f"context size of the {role}": facts["n_ctx"] for role, facts in models.items()},
        "grader": run["grader"],
        "system prompt": run["prompt"]["system"],
        "chat template kwargs": json.dumps(run["prompt"]["chat_template_kwargs"], sort_keys=True),
        "step separator": run["step_separator"],
        **{name: sampling[name] for name in ("temperature", "top_p", "seed")},
        **run["limits"],
        **({"head": _short(run["router"]["sha256"])} if run["router"] else {}),
        **({} if run["early_stop"] is None else {EARLY_STOP: run["early_stop"]}),
        **({"reward": run["reward"]} if run["reward"] else {}),
        **({"prm style": run["prm_style"]} if run["prm_style"] else {}),
        **({"concurrency": run["concurrency"]} if "concurrency" in run else {}),
        "kv_type": run["context"]["kv_type"],
        **{_threads_of(role): facts["threads"] for role, facts in models.items()},
        "gpu_layers": machine["gpu_layers"],
        "flash_attention": machine["flash_attention"],
        "processor": machine["cpu"],
        **({"GPU": machine.get("gpu", NO_GPU)} if _computes(models) else {}),
        "llama-cpp-python": machine["llama_cpp_python"],
    }
    return {name: _told(value) for name, value in values.items()}


def _told(value: Any) -> str:
    """A value as it is compared and told: as it is if it is short, else by its sha256."""
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= SHOWN and text.isprintable():
        return text
    return _short(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest())


def _short(sha256: str | None) -> str:
    return f"sha256 {sha256[:16]}" if sha256 else ""
