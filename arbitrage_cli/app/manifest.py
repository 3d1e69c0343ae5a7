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
from arbitrage_cli.inference.llama import binding_version
from arbitrage_cli.inference.open import load_llama
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.step_text import THOUGHT_END
from arbitrage_cli.model_files.checksums import sha256_seen
from arbitrage_cli.model_files.gguf import read_facts
from arbitrage_cli.model_files.pairs import is_gguf
from arbitrage_cli.problems.rows import Dataset
from arbitrage_cli.routing.presets import PRESETS
from arbitrage_cli.routing.route import Route, stored_route
from arbitrage_cli.runs.records import SCHEMA, tau_in_json
from arbitrage_cli.system.machine import processor_name
from arbitrage_cli.types import Limits, ModelRole

_HINT = "use another path (--output), or restore the original settings"
MAX_SHOWN = 80  # characters; longer values are shown as a checksum


FIXED: Mapping[str, str] = {
    "data set": "dataset.sha256",
    "policy": "route.policy",
    "tau": "route.tau",
    "grader": "grader",
    "reward": "reward",
    "concurrency": "concurrency",
    "processor": "machine.cpu",
    "GPU": "machine.gpu",
    "llama-cpp-python": "machine.llama_cpp_python",
}
"""Paths of the values in run.json that, like all settings, must not change when a run resumes. None is ignored."""
UNLIMITED = ("max steps", "think tokens")  # settings in which None means "no limit"
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
    return {
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
        "settings": settings_of(spec),
        "samples": 1,
        "tau_costs": spec.tau_costs,
        "price": spec.request.named.price,
        "unit_costs": {role: asdict(model.costs) for role, model in spec.models.items() if model.costs},
        "machine": _machine_facts(spec),
        "warnings": [],
    }


def settings_of(
    spec: Spec, routes: Sequence[Route] | None = None, limits: Limits | None = None, sampler: Sampler | None = None
) -> dict[str, Any]:
    """Return the settings that affect solutions. None of them may change when a run resumes."""
    task, load, limits, routes = spec.task, spec.load, limits or spec.limits, routes or spec.routes
    early_stops = [route.stops_early for route in routes if route.policy.can_stop_early]
    router = spec.available_router.router if any(route.policy.needs_router for route in routes) else None
    return {
        "task": task.name,
        "step_separator": task.step_end.separator,
        "step_min_chars": task.step_end.min_chars,
        "think_min_chars": THOUGHT_END.min_chars if limits.think_tokens != 0 else None,
        "system": spec.request.system,
        "chat_template_kwargs": dict(load.template_variables),
        **asdict(sampler or spec.sampler),
        **{name: getattr(limits, name) for name in ("max_steps", "max_tokens", "max_step_tokens", "think_tokens")},
        "early_stop": any(early_stops) if early_stops else None,
        "check_thinking": spec.check_thinking,
        "reward": spec.reward,
        "router_sha256": router and router.sha256,
        "kv_type": load.kv_type,
        "gpu_layers": "auto" if load.gpu_layers is None else load.gpu_layers,
        "flash_attention": "auto" if load.flash_attention is None else load.flash_attention,
    }


def problem_facts(dataset: Dataset, ids: Sequence[str]) -> Run:
    levels = {item.problem.id: item.level for item in dataset.items}
    facts = {"ids": list(ids), "levels": {name: levels[name] for name in ids}, "planned": len(ids)}
    return {"dataset": _dataset_facts(dataset), **facts}


def with_fingerprint(run: Run) -> Run:
    """Return the manifest with a fingerprint: the shortened values of all fields that must not change."""
    return run | {"fingerprint": {name: _text(value) for name, value in _fixed(run).items()}}


def record_settings(spec: Spec, route: Route, limits: Limits | None, sampler: Sampler | None) -> dict[str, Any]:
    """Return the settings that affect a solution, for its record."""
    settings, available = settings_of(spec, [route], limits, sampler), spec.available_router
    router = available.router.card.name if available.router and route.policy.needs_router else None
    costs_of = available.costs_of if route.tau_name in PRESETS else None
    return settings | {"router": router, "tau_costs": costs_of, "concurrency": spec.concurrency}


def add_loaded(run: Run, models: Mapping[ModelRole, Model]) -> Run:
    """Complete the manifest with fields from the loaded models. Raises UsageError if a server's model has changed."""
    full = deepcopy(run)
    for role, model in models.items():
        card, template, served = model.card, model.chat_template, model.served_facts()
        check_unchanged(f"{role} server", full["models"][role].get("served") or {}, served or {})
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
        full["machine"]["n_batch"] = llama.BATCH_SIZE
    return full


def check_unchanged(owner: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UsageError if a value of a server, or of several, differs from that of the run to resume."""
    for name in before:
        if before[name] != now[name]:
            raise UsageError(
                f"{owner}: {name} changed from {before[name]} to {now[name]} since this run began",
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
        "policies": [*earlier["policies"], *added],
        "warnings": [*earlier["warnings"], *now["warnings"]],
    }
    merged["samples"] = max(earlier["samples"], now["samples"])
    if added:
        names = ", ".join(stored_route(listed).label for listed in added)
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
    computes = any(map(is_gguf, spec.sources.values()))
    return {
        "gpu": (load_llama().gpu_names() or "none") if computes else None,
        "cpu": processor_name(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "llama_cpp_python": binding_version(),
    }


# --- values


def _fixed(run: Mapping[str, Any]) -> dict[str, Any]:
    found = {name.replace("_", " "): value for name, value in run["settings"].items()}
    found |= {name: "none" for name in UNLIMITED if found[name] is None}
    found |= {name: value for name, path in FIXED.items() if (value := _get(run, path)) is not None}
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
