"""Creates the run manifest (run.json) and checks that a run can be resumed.

All fields that must not change are known before a model is loaded, so an incompatible run is rejected immediately. Fields
that depend on loaded models are added later.
"""

import hashlib
import json
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from arbitrage_cli import __version__
from arbitrage_cli.app.loaded import Model
from arbitrage_cli.app.spec import ModelSpec, Run, Spec
from arbitrage_cli.errors import UsageError
from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.inference.llama.prebuilt import binding_version
from arbitrage_cli.inference.open import load_llama
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.step_text import THOUGHT_END
from arbitrage_cli.model_files.checksums import sha256_seen
from arbitrage_cli.model_files.facts import read_facts
from arbitrage_cli.model_files.pairs import is_gguf
from arbitrage_cli.problems.rows import Dataset
from arbitrage_cli.routing.presets import PRESETS
from arbitrage_cli.routing.route import Route, label
from arbitrage_cli.runs.records import SCHEMA, tau_in_json
from arbitrage_cli.system.machine import processor_name
from arbitrage_cli.types import Limits, ModelRole

_HINT = "use another path (--output), or restore the original settings"
MAX_SHOWN = 80  # characters; longer values are shown as a checksum


FIXED: Mapping[str, str] = {
    "data set": "dataset.sha256",
    "policy": "route.policy",
    "tau": "route.tau",
    "task": "task",
    "grader": "grader",
    "system prompt": "prompt.system",
    "chat template kwargs": "prompt.chat_template_kwargs",
    "step separator": "step_separator",
    "minimum step length": "step_min_chars",
    "minimum thought length": "think_min_chars",
    **{name.replace("_", " "): f"sampling.{name}" for name in ("temperature", "top_p", "top_k", "min_p", "seed")},
    **{name.replace("_", " "): f"limits.{name}" for name in ("max_steps", "max_tokens", "max_step_tokens")},
    "thinking token limit": "limits.think_tokens",
    "router": "router.sha256",
    "early stop": "early_stop",
    "checker's thinking": "check_thinking",
    "reward": "reward",
    "concurrency": "concurrency",
    "kv type": "context.kv_type",
    "gpu layers": "machine.gpu_layers",
    "flash attention": "machine.flash_attention",
    "processor": "machine.cpu",
    "GPU": "machine.gpu",
    "llama-cpp-python": "machine.llama_cpp_python",
}
"""Paths of the values in run.json that must not change when a run resumes. None is ignored, except in `UNLIMITED`."""
UNLIMITED = ("max steps", "thinking token limit")  # None means "no limit"
FIXED_OF_MODELS = {
    "{} model": "identity",
    "{} context size": "n_ctx",
    "number of {} threads": "threads",
}


def make_manifest(spec: Spec) -> Run:
    """Return a manifest of all settings and files that affect solutions.

    A model file is read again only if its size, mtime or inode has changed. Raises ModelFileError if a file differs from the
    published file.
    """
    router = spec.deciding_router
    return settings_of(spec) | {
        "schema": SCHEMA,
        "tool": __version__,
        "command": list(spec.request.options.command),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "policies": [
            {
                "policy": one.policy.name,
                "tau": tau_in_json(one.tau),
                "tau_name": one.tau_name,
                "score_is": one.policy.score_is or None,
            }
            for one in spec.routes
        ],
        "models": {role: _model_facts(model, spec.load_of(role)) for role, model in spec.models.items()},
        "router": router and {"name": router.card.name, "sha256": router.sha256, "card": router.card.to_json()},
        "tau_costs": spec.tau_costs,
        "price": spec.request.named.price,
        "named_taus": dict(spec.named_taus.taus) if spec.named_taus else None,
        "unit_costs": {role: asdict(model.costs) for role, model in spec.models.items() if model.costs},
        "machine": _machine_facts(spec),
        "warnings": [],
    }


def settings_of(spec: Spec) -> Run:
    """Return the settings that must not change when a run resumes, except the models, the router's card and the machine."""
    request, load, task, router = spec.request, spec.load, spec.task, spec.deciding_router
    return {
        "router": router and {"sha256": router.sha256},
        "early_stop": spec.stops_early,
        "check_thinking": spec.check_thinking,
        "reward": spec.reward,
        "prompt": {"system": request.system, "chat_template_kwargs": load.template_variables},
        "sampling": {**asdict(spec.sampler), "samples": 1},
        "limits": asdict(spec.limits),
        "task": task.name,
        "step_separator": task.step_end.separator,
        "step_min_chars": task.step_end.min_chars,
        "think_min_chars": THOUGHT_END.min_chars if spec.limits.think_tokens != 0 else None,
        "context": {"kv_type": load.kv_type},
    }


def problem_facts(dataset: Dataset, ids: Sequence[str]) -> Run:
    levels = {item.problem.id: item.level for item in dataset.items}
    facts = {"ids": list(ids), "levels": {name: levels[name] for name in ids}, "planned": len(ids)}
    return {"dataset": _dataset_facts(dataset), **facts}


def with_fingerprint(run: Run) -> Run:
    """Return the manifest with a fingerprint: the shortened values of all fields that must not change."""
    return run | {"fingerprint": {name: _text(value) for name, value in _fixed(run).items()}}


def record_settings(spec: Spec, route: Route, limits: Limits, sampler: Sampler) -> dict[str, Any]:
    """Return the settings that affect a solution's text, for its record."""
    settings: dict[str, Any] = {name: getattr(sampler, name) for name in ("top_p", "top_k", "min_p")}
    settings |= asdict(limits)
    settings |= {"system": spec.request.system, "kv_type": spec.load.kv_type}
    if spec.load.template_variables:
        settings["chat_template_kwargs"] = dict(spec.load.template_variables)
    if limits.think_tokens != 0:
        settings["think_min_chars"] = THOUGHT_END.min_chars
    if (router := spec.available_router.router) and route.policy.needs_router:
        costs_of = spec.available_router.costs_of if route.tau_name in PRESETS else None
        settings |= {"router": router.card.name, "router_sha256": router.sha256, "tau_costs": costs_of}
    if route.policy.can_stop_early:
        settings["early_stop"] = route.stops_early
    return settings


def add_loaded(run: Run, models: Mapping[ModelRole, Model]) -> Run:
    """Complete the manifest with fields from the loaded models. Raises UsageError if a server's model has changed."""
    full = deepcopy(run)
    for role, model in models.items():
        card, template, served = model.card, model.chat_template, model.served_facts()
        _check_served(role, full["models"][role].get("served"), served)
        full["models"][role] |= {
            "name": card.name,
            "description": card.description,
            "kv_cache": card.kv_cache,
            "served": served,
            "chat_template_sha256": None if template is None else hashlib.sha256(template.encode()).hexdigest(),
        }
    if any(is_gguf(facts["source"]) for facts in full["models"].values()):
        llama = load_llama()
        full["machine"]["flags"] = str(llama.system_info())
        full["context"]["n_batch"] = llama.BATCH_SIZE
    return full


def _check_served(role: ModelRole, before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> None:
    if before is None or now is None:
        return
    for name in ("model", "log_probabilities", "context_size"):
        if before[name] != now[name]:
            raise UsageError(
                f"{role} server: {name} changed from {before[name]} to {now[name]} since this run began",
                "serve the same model with the same settings, or use another path (--output)",
            )


def resume(earlier: Run, now: Run, place: Path) -> Run:
    """Merge the manifests of a resumed run. Raises UsageError naming the first fixed field that differs."""
    before, after = _fixed(earlier), _fixed(now)
    for name in (name for name in before if name in after):
        was, is_now = _text(before[name]), _text(after[name])
        if was != is_now:
            can_regrade = name == "grader" and "kind" not in now  # only runs of bench have no kind
            regrade = f"grade the answers again: {shlex.join(['arbitrage', 'report', str(place), '--regrade'])}"
            raise UsageError(f"{place}: {name} changed from {was} to {is_now}", regrade if can_regrade else _HINT)
    known = {(listed["policy"], listed["tau"]) for listed in earlier["policies"]}
    added = [listed for listed in now["policies"] if (listed["policy"], listed["tau"]) not in known]
    merged = _joined(earlier, now) | {
        "created": earlier["created"],
        "named_taus": earlier.get("named_taus") or now.get("named_taus"),
        "policies": [*earlier["policies"], *added],
        "warnings": [*earlier["warnings"], *now["warnings"]],
    }
    merged["sampling"]["samples"] = max(earlier["sampling"]["samples"], now["sampling"]["samples"])
    if added:
        names = ", ".join(label(listed["policy"], listed["tau"], listed["tau_name"]) for listed in added)
        merged["warnings"].append(f"policies measured after the others, so the machine's speed may have changed: {names}")
    if earlier["tool"] != now["tool"]:
        merged["warnings"].append(f"the results come from two versions of arbitrage: {earlier['tool']} and {now['tool']}")
    if "ids" in now:
        merged["ids"] = list(dict.fromkeys([*earlier["ids"], *now["ids"]]))
        merged["planned"] = len(merged["ids"])
    return merged | {"warnings": list(dict.fromkeys(merged["warnings"]))}


def _joined(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    joined = dict(earlier)
    for name, value in now.items():
        if isinstance(value, Mapping) and isinstance(earlier.get(name), Mapping):
            joined[name] = _joined(earlier[name], value)
        elif value is not None or name not in earlier:
            joined[name] = value
    return joined


def with_grown(earlier: Run, dataset: Dataset) -> Run:
    """Return the manifest, and update its data set if problems were only added at the end."""
    known = earlier["dataset"]
    is_same = known["sha256"] == dataset.sha256_of_first(known["count"])
    return {**earlier, "dataset": _dataset_facts(dataset)} if is_same else earlier


def with_grader(run: Run, version: str) -> Run:
    return {**run, "grader": version, "fingerprint": {**run["fingerprint"], "grader": _text(version)}}


# --- the parts


def _model_facts(model: ModelSpec, load: LoadOptions) -> dict[str, Any]:
    source, files = model.source, model.files
    facts: dict[str, Any] = {"source": source, "identity": source, "threads": model.threads}
    facts |= dict.fromkeys(("file", "size", "sha256"))
    if not is_gguf(source):
        return facts | {"n_ctx": load.context_size, "threads": None}
    sha256 = sha256_seen(files)
    return facts | {
        "identity": f"sha256 {sha256[:16]}",
        "file": str(files[0].absolute()),
        "n_ctx": read_facts(files, load.context_size).context_size,
        "size": sum(path.stat().st_size for path in files),
        "sha256": sha256,
    }


def _dataset_facts(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "revision": dataset.revision,
        "sha256": dataset.sha256,
        "count": len(dataset.items),
    }


def _machine_facts(spec: Spec) -> dict[str, Any]:
    computes, load = any(map(is_gguf, spec.sources.values())), spec.load
    return {
        "gpu": (load_llama().gpu_names() or "none") if computes else None,
        "gpu_layers": "auto" if load.gpu_layers is None else load.gpu_layers,
        "flash_attention": "auto" if load.flash_attention is None else load.flash_attention,
        "cpu": processor_name(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "llama_cpp_python": binding_version(),
    }


# --- values


def _fixed(run: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: _get(run, path) for name, path in FIXED.items()}
    found |= {name: "none" for name in UNLIMITED if found[name] is None}
    for role, facts in run["models"].items():
        found |= {name.format(role): facts.get(key) for name, key in FIXED_OF_MODELS.items()}
    return {name: value for name, value in found.items() if value is not None}


def _get(run: Any, path: str) -> Any:
    for part in path.split("."):
        run = run.get(part) if isinstance(run, Mapping) else None
    return run


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    if re.fullmatch("[0-9a-f]{64}", text):
        return f"sha256 {text[:16]}"
    if len(text) <= MAX_SHOWN and text.isprintable():
        return text
    return f"sha256 {hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
