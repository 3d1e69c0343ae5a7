"""`arbitrage models`, and models of the Hub in `arbitrage solve`, with a Hub on loopback."""

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_hub
import pytest
from cli import ESCAPE, Result, assert_refused, run
from fake_hub import FakeHub

DRAFT, TARGET = "user/Draft-GGUF", "user/Target-GGUF"
USAGE, MODEL = 2, 3
SHORT = ("--max-tokens", "16", "--threads", "1")


@dataclass
class HubFixture:
    """A Hub, and an environment in which `arbitrage` asks it and keeps all its files in one folder."""

    hub: FakeHub
    folder: Path

    def env(self, **changes: str) -> dict[str, str | None]:
        here: dict[str, str | None] = {
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.folder / "hf"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "NO_PROXY": "*",
        }
        unset = dict.fromkeys(["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HUGGINGFACE_HUB_CACHE"])
        return {**unset, **here, **changes}

    def run(self, *arguments: str, **changes: str) -> Result:
        return run(*arguments, env=self.env(**changes))

    def write(self, name: str, text: str) -> None:
        path = self.folder / "config" / "arbitrage" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def offers(self, repo: str, **files: Path | bytes) -> None:
        self.hub.repos[repo] = {
            f"{name}.gguf": data if isinstance(data, bytes) else data.read_bytes() for name, data in files.items()
        }


@pytest.fixture
def place(tmp_path: Path) -> Iterator[HubFixture]:
    with fake_hub.running() as hub:
        yield HubFixture(hub, tmp_path)


@pytest.fixture
def pair(place: HubFixture, tiny: Mapping[str, Path]) -> HubFixture:
    place.offers(DRAFT, **{"Draft-Q4_K_M": tiny["draft"]})
    place.offers(TARGET, **{"target.q8_0": tiny["target"]})
    place.write(
        "pairs.toml",
        f'[mine]\ndraft.source = "{DRAFT}"\ntarget.source = "{TARGET}:Q8_0"\nnotes = "two tiny ones"\nctx = 512\n',
    )
    return place


def test_list_shows_pairs_and_what_is_here_without_the_hub(pair: HubFixture) -> None:
    shown = pair.run("models", "list")
    assert (shown.code, shown.err) == (0, "")
    assert "mine: two tiny ones" in shown.out
    assert f"  draft    not here  {DRAFT}\n" in shown.out
    assert not pair.hub.requests


def test_pull_fetches_a_pair_once_and_finds_it_offline(pair: HubFixture) -> None:
    pulled = pair.run("models", "pull", "mine")
    assert [Path(path).name for path in pulled.out.splitlines()] == ["Draft-Q4_K_M.gguf", "target.q8_0.gguf"]
    assert "downloading Draft-Q4_K_M.gguf" in pulled.err
    assert ESCAPE not in pulled.stderr
    for flags in (("-q",), ("-q", "--offline")):
        again = pair.run("models", "pull", "mine", *flags)
        assert (again.code, again.out, again.err) == (0, pulled.out, "")
    assert len(pair.hub.downloads()) == 2


def test_a_served_target_does_not_keep_the_draft_from_being_pulled_and_described(pair: HubFixture) -> None:
    pair.write("pairs.toml", f'[mine]\ndraft.source = "{DRAFT}"\ntarget.source = "http://127.0.0.1:9/v1"\n')
    assert pair.run("models", "pull", "mine").code == 0
    (model,) = pair.run("models", "info", "mine", "--json").record["models"]
    assert model["model"] == DRAFT


@pytest.mark.parametrize("name", ["scripted:draft", "lama3", "missing.gguf"])
def test_only_names_of_models_and_pairs_are_pulled(place: HubFixture, name: str) -> None:
    assert place.run("models", "pull", name).code == USAGE
    assert not place.hub.requests


@pytest.mark.parametrize("command", [("models", "pull", DRAFT), ("solve", "1 + 1", "--policy", "draft", "--draft", DRAFT)])
def test_offline_never_asks_the_hub(place: HubFixture, command: tuple[str, ...]) -> None:
    for flags, variables in ((["--offline"], {}), ([], {"ARBITRAGE_OFFLINE": "1"}), ([], {"HF_HUB_OFFLINE": "1"})):
        result = place.run(*command, *flags, **variables)
        assert_refused(result, MODEL, "", "not on this machine", f"arbitrage models pull {DRAFT}")
    assert not place.hub.requests


def test_info_is_read_from_the_header(tiny: Mapping[str, Path]) -> None:
    record = run("models", "info", str(tiny["draft"]), "--json").record
    (model,) = record["models"]
    assert (model["architecture"], model["name"], model["has_template"]) == ("llama", "tiny draft", True)
    assert (model["trained_context_size"], model["context_size"], model["vocabulary_size"]) == (2048, 2048, 261)
    assert model["kv_bytes"] == 2 * 2048 * 2 * (2 * 8) * 2  # layers, tokens, routers, width of key and value, bytes
    assert model["memory_bytes"] == record["memory_bytes"] == tiny["draft"].stat().st_size + model["kv_bytes"]
    shown = run("models", "info", tiny["draft"], without=["llama_cpp"])
    assert "tiny draft" in shown.out
    assert f"checking {tiny['draft'].name}" in shown.err


def test_memory_depends_on_the_rollback_that_the_first_load_found(tiny: Mapping[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "hybrid.gguf"
    path.write_bytes(tiny["hybrid"].read_bytes())  # new on this machine
    options = ("--draft", path, "--target", path, "--policy", "target", "--max-tokens", "4")
    (untested,) = run("models", "info", path, "--json").record["models"]
    assert run("solve", "1 + 1", *options).code == 0
    (model,) = run("models", "info", path, "--json").record["models"]
    assert 0 < model["states_bytes"] < untested["states_bytes"]  # no states for rejected tokens
    (transformer,) = run("models", "info", tiny["draft"], "--json").record["models"]
    assert transformer["states_bytes"] == 0


def test_info_of_a_served_model_names_it() -> None:
    assert_refused(run("models", "info", "http://127.0.0.1:9/v1"), MODEL, "http://127.0.0.1:9/v1")


def test_info_of_no_model_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "damaged").write_bytes(b"GGUF" + b"\xff" * 60)
    for name in ("", "fifo", "missing.gguf", "damaged"):
        assert_refused(run("models", "info", tmp_path / name), MODEL, str(tmp_path / name))


def test_name_of_a_model_cannot_drive_the_terminal(tiny: Mapping[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny["draft"].read_bytes().replace(b"tiny draft", b"\x1b[2Jxdraft"))
    shown = run("models", "info", str(path))
    assert "xdraft" in shown.out
    assert ESCAPE not in shown.stdout


def files(*names: str | Path) -> tuple[int, list[dict[str, Any]]]:
    result = run("models", "info", *names, "--json")
    return result.code, result.records[0]["files"]


def test_files_that_ship_are_known_by_their_sha256() -> None:
    code, found = files("builtin")
    assert code == 0
    assert {(Path(one["path"]).name, one["origin"], one["is_damaged"]) for one in found} == {
        ("draft.gguf", "shipped", False),
        ("target.gguf", "shipped", False),
        ("thinking-draft.gguf", "shipped", False),  # the checker
    }
    card = run("models", "info", "builtin:universal", "--json").record
    assert card["origin"] == "shipped"


def test_bit_that_flips_after_the_first_use_is_damage(tiny: Mapping[str, Path], tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    shutil.copy(tiny["draft"], model)
    assert files(model)[1][0]["origin"] == "unknown"
    assert run("solve", "1 + 1", "--policy", "draft", "--draft", model, *SHORT).code == 0
    assert files(model)[1][0]["origin"] == "recorded"
    state = model.stat()
    model.write_bytes(tiny["draft"].read_bytes().replace(b"tiny draft", b"tiny craft"))
    assert files(model)[1][0]["origin"] == "unknown"  # the change may have been meant
    os.utime(model, ns=(state.st_atime_ns, state.st_mtime_ns))
    code, (found,) = files(model)
    assert (code, found["origin"], found["is_damaged"]) == (MODEL, "recorded", True)
    assert "DAMAGED" in run("models", "info", model).out


def test_solve_fetches_models_of_the_hub_once(pair: HubFixture) -> None:
    command = ("solve", "Hello", "--json", "--draft", f"{DRAFT.lower().replace('draft-gguf', 'Draft-GGUF')}:q4_k_m")
    first = pair.run(*command, "--target", f"{TARGET}:q8_0", *SHORT)
    assert first.record["steps"]
    record = pair.run("solve", "Hello", "--json", "--pair", "mine", "--policy", "random", *SHORT).record
    assert (record["draft"], record["target"]) == (DRAFT, f"{TARGET}:Q8_0")
    assert "context 512" in record["models"]["draft"]
    pair.hub.requests.clear()
    second = pair.run(*command, "--target", f"{TARGET}:q8_0", *SHORT, "--offline")
    assert second.record["text"] == first.record["text"]
    assert not pair.hub.requests


@pytest.mark.parametrize(
    ("flags", "variables", "settings", "drafted"),
    [
        (["--pair", "swapped", "--draft", "scripted:draft"], {}, "", "scripted:draft"),
        (["--pair", "swapped"], {}, 'draft = "scripted:draft"', "scripted:target"),
        (["--draft", "scripted:draft"], {"ARBITRAGE_PAIR": "swapped"}, "", "scripted:draft"),
        ([], {"ARBITRAGE_PAIR": "swapped"}, 'draft = "scripted:draft"', "scripted:draft"),
        ([], {"ARBITRAGE_DRAFT": "scripted:draft"}, 'pair = "swapped"', "scripted:draft"),
        ([], {}, 'pair = "swapped"\ndraft = "scripted:draft"', "scripted:draft"),
    ],
)
def test_named_model_wins_over_a_pair_unless_the_pair_was_named_nearer(
    place: HubFixture, flags: list[str], variables: dict[str, str], settings: str, drafted: str
) -> None:
    place.write("pairs.toml", '[swapped]\ndraft.source = "scripted:target"\ntarget.source = "scripted:draft"\n')
    place.write("config.toml", settings)
    record = place.run("solve", "1 + 2", "--json", *flags, **variables).record
    assert (record["draft"], record["target"]) == (drafted, "scripted:draft")
