"""Which runs may be resumed: every fixed field of the manifest must stay, the others may grow."""

from pathlib import Path
from typing import Any

import pytest

from arbitrage_cli.app.manifest import resume
from arbitrage_cli.app.spec import Run
from arbitrage_cli.errors import UsageError

HERE = Path("run")


def manifest(**changes: Any) -> Run:
    """The manifest of a run of one policy; names with __ stand for a path."""
    run: Run = {
        "tool": "1",
        "created": "2026-01-01",
        "dataset": {"sha256": "d" * 64},
        "ids": ["p0"],
        "planned": 1,
        "levels": {"p0": 1},
        "policies": [{"policy": "target", "tau": None, "score_is": None}],
        "models": {"target": {"source": "large.gguf", "identity": "sha256 aa", "n_ctx": 4096, "threads": 2}},
        "router": None,
        "reward": None,
        "grader": "rules 1",
        "samples": 1,
        "settings": {
            "system": "Think.",
            "seed": 0,
            "max_steps": None,
            "think_tokens": None,
            "early_stop": None,
            "router_sha256": None,
        },
        "machine": {"gpu": "none", "cpu": "abacus", "llama_cpp_python": "0.3"},
        "concurrency": 1,
        "warnings": [],
        "fingerprint": {},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = run
        for part in parents:
            place = place[part]
        place[last] = value
    return run


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        ("dataset__sha256", "e" * 64, "data set"),
        ("models__target__identity", "sha256 bb", "target model"),
        ("models__target__n_ctx", 8192, "target context size"),
        ("models__target__threads", 4, "number of target threads"),
        ("grader", "rules 2", "grader"),
        ("settings__system", "Hurry.", "system"),
        ("settings__max_steps", 100, "max steps"),
        ("settings__think_tokens", 30, "think tokens"),
        ("machine__cpu", "slide rule", "processor"),
        ("machine__gpu", "NVIDIA H100", "GPU"),
        ("concurrency", 8, "concurrency"),
    ],
)
def test_changed_fixed_field_is_refused(path: str, value: Any, name: str) -> None:
    changed = manifest(**{path: value})
    for before, now in ((manifest(), changed), (changed, manifest())):
        with pytest.raises(UsageError, match=f": {name} changed from .* to .*"):
            resume(before, now, HERE)


@pytest.mark.parametrize(("name", "value", "other"), [("early_stop", True, False), ("router_sha256", "a" * 64, "b" * 64)])
def test_setting_that_did_not_apply_may_be_added_and_then_stays(name: str, value: Any, other: Any) -> None:
    grown = resume(manifest(), manifest(**{f"settings__{name}": value}), HERE)
    assert grown["settings"][name] == value
    assert resume(grown, manifest(), HERE)["settings"][name] == value
    with pytest.raises(UsageError, match="changed from"):
        resume(grown, manifest(**{f"settings__{name}": other}), HERE)


def test_problems_samples_policies_and_models_may_grow() -> None:
    entropy = {"policy": "entropy", "tau": 1.0, "tau_name": None, "score_is": "nats"}
    now = manifest(ids=["p1"], levels={"p1": 2}, policies=[entropy], samples=3)
    now["models"]["draft"] = {"source": "small.gguf", "identity": "sha256 cc", "n_ctx": 4096, "threads": 2}
    grown = resume(manifest(), now, HERE)
    assert (grown["ids"], grown["planned"], grown["levels"]) == (["p0", "p1"], 2, {"p0": 1, "p1": 2})
    assert [one["policy"] for one in grown["policies"]] == ["target", "entropy"]
    assert grown["samples"] == 3
    assert list(grown["models"]) == ["target", "draft"]
    assert (grown["created"], len(grown["warnings"])) == ("2026-01-01", 1)
    fewer = resume(grown, manifest(), HERE)
    assert (fewer["planned"], fewer["samples"], len(fewer["policies"])) == (2, 3, 2)


def test_facts_of_loaded_models_are_kept() -> None:
    known = manifest(models__target__name="Large")
    assert resume(known, manifest(), HERE)["models"]["target"]["name"] == "Large"


@pytest.mark.parametrize(("kind", "is_graded"), [({}, True), ({"kind": "collect"}, False)])
def test_only_a_benchmark_can_be_graded_again(kind: dict[str, str], is_graded: bool) -> None:
    with pytest.raises(UsageError) as caught:
        resume(manifest(**kind), manifest(**kind, grader="rules 2"), Path("my run"))
    assert ("--regrade" in caught.value.hint, "'my run'" in caught.value.hint) == (is_graded, is_graded)


def test_another_version_is_noted() -> None:
    assert len(resume(manifest(), manifest(tool="2"), HERE)["warnings"]) == 1
