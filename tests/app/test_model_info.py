"""What is said about models, without loading them: their names, their files and checksums, and the memory that they need."""

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from cli import pair_named_mine
from commands import MATH, refused
from made_up_tuning import FAST_READER, pretend
from pairs_file import add_pair

from arbitrage_cli import open_pair
from arbitrage_cli.app.asking.naming import choose_models
from arbitrage_cli.app.commands.model_info import (
    describe_model,
    describe_models,
    describe_router,
    names_to_fetch,
    pair_bounds,
)
from arbitrage_cli.app.options import Options
from arbitrage_cli.costs.store import tuned_file
from arbitrage_cli.display.model_facts import bound_fact
from arbitrage_cli.model_files.checksums import identify, known_sha256
from arbitrage_cli.model_files.hub import HubName
from arbitrage_cli.model_files.pairs import ModelEntry, read_pairs

HUB, SERVED = "user/Draft-GGUF", "http://127.0.0.1:9/v1"


def test_only_names_of_models_and_pairs_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A served target does not keep the draft from being fetched and described."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    pair_named_mine(tmp_path, draft=HUB, target=SERVED)
    assert names_to_fetch("mine") == names_to_fetch(HUB) == [HubName(HUB)]
    for name in ("scripted:draft", "lama3", "missing.gguf"):
        assert refused(names_to_fetch, name).exit_code == 2
    assert refused(describe_models, ["mine"]).hint.endswith("arbitrage models pull mine")
    assert refused(describe_models, [HUB]).hint.endswith(f"arbitrage models pull {HUB}")


def test_a_pull_of_a_pair_includes_its_process_reward_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    pair = replace(read_pairs()["builtin"], name="mine", draft=ModelEntry(HUB), prm="user/Prm-GGUF")
    add_pair(tmp_path / "arbitrage" / "pairs.toml", pair)
    assert names_to_fetch("mine") == [HubName(HUB), HubName("user/Prm-GGUF")]


def test_no_model_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "damaged").write_bytes(b"GGUF" + b"\xff" * 60)
    for name in (SERVED, *(f"{tmp_path}{end}" for end in ("", "/fifo", "/missing.gguf", "/damaged"))):
        error = refused(describe_model, name)
        assert (error.exit_code, error.message.startswith(name)) == (3, True)


def test_memory_depends_on_the_rollback_that_the_first_load_found(tiny: Mapping[str, Path], tmp_path: Path) -> None:
    path = str(shutil.copy(tiny["hybrid"], tmp_path / "hybrid.gguf"))  # new on this machine
    untested = describe_model(path)["states_bytes"]
    with open_pair(target=path, policy="target", max_tokens=4) as pair:
        assert pair.solve("1 + 1").text
    assert 0 < describe_model(path)["states_bytes"] < untested  # no states for rejected tokens
    assert describe_model(str(tiny["draft"]))["states_bytes"] == 0


def test_files_that_ship_are_known_by_their_sha256() -> None:
    files = [Path(path) for model in describe_models(["builtin"])["models"] for path in model["files"]]
    assert [path.stem for path in files] == ["draft", "target", "thinking-draft"]  # the last one is the checker
    assert {(one.origin, one.is_damaged) for one in map(identify, files)} == {("shipped", False)}
    assert describe_router("builtin:universal")["origin"] == "shipped"


def test_a_context_size_is_that_of_the_models_own_pair(
    tiny: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    add_pair(tmp_path / "arbitrage" / "pairs.toml", replace(read_pairs()["builtin"], name="mine", ctx=128))
    other = str(tiny["draft"])
    sizes = {model["model"]: model["context_size"] for model in describe_models(["mine", other])["models"]}
    assert sizes["builtin:draft"] == 128
    assert sizes[other] == describe_model(other)["context_size"] != 128


def test_a_bit_that_flips_after_the_first_use_is_damage(tiny: Mapping[str, Path], tmp_path: Path) -> None:
    model = Path(shutil.copy(tiny["draft"], tmp_path / "model.gguf"))
    assert identify(model).origin == "unknown"
    known_sha256([model])
    assert identify(model).origin == "recorded"
    state = model.stat()
    model.write_bytes(tiny["draft"].read_bytes().replace(b"tiny draft", b"tiny craft"))
    assert identify(model).origin == "unknown"  # the change may have been meant
    os.utime(model, ns=(state.st_atime_ns, state.st_mtime_ns))
    found = identify(model)
    assert (found.origin, found.is_damaged, refused(found.check).exit_code) == ("recorded", True, 3)


def test_a_file_in_the_cache_of_the_hub_is_compared_with_the_published_sha256(
    tiny: Mapping[str, Path], tmp_path: Path
) -> None:
    """Its name there is the published sha256."""
    content = tiny["draft"].read_bytes()
    link, blob = tmp_path / "link.gguf", tmp_path / hashlib.sha256(content).hexdigest()
    link.symlink_to(blob)
    for written, is_damaged in ((content, False), (content.replace(b"tiny draft", b"tiny craft"), True)):
        blob.write_bytes(written)
        found = identify(link)
        assert (found.origin, found.is_damaged) == ("published", is_damaged)


@pytest.mark.parametrize(
    ("explicit", "drafted"),
    [("pair draft", "scripted:draft"), ("pair", "scripted:target"), ("draft", "scripted:draft"), ("", "scripted:draft")],
)
def test_a_named_model_wins_over_a_pair_unless_only_the_pair_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, explicit: str, drafted: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    pair_named_mine(tmp_path, draft="scripted:target", target="scripted:draft")
    options = Options(pair="mine", draft="scripted:draft", explicit=frozenset(explicit.split()))
    assert choose_models(options, MATH).sources == {"draft": drafted, "target": "scripted:draft"}


def test_bounds_of_a_pair_need_its_token_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert pair_bounds("builtin") == []
    pretend(tuned_file(), FAST_READER)
    found = {bound.route.policy.name: bound for bound in pair_bounds("builtin")}
    assert found.keys() == {"speculative", "arbitrage", "agree"}
    assert all(bound.at_most >= bound.likely > 1 for bound in found.values())
    assert all(name in bound_fact(bound)[0] for name, bound in found.items())
    assert pair_bounds("builtin:draft") == []
    check = ModelEntry("https://api.example.com/v1/model", api_key_env="NO_SUCH_KEY")
    add_pair(tmp_path / "arbitrage" / "pairs.toml", replace(read_pairs()["builtin"], name="mine", check=check))
    assert pair_bounds("mine") == []
