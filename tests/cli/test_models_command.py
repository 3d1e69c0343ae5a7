"""`arbitrage models`, and models of the Hub in `arbitrage solve`, with a Hub on loopback."""

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_hub
import pytest
from cli import ESCAPE, Result, assert_refused, run
from fake_hub import FakeHub
from marks import within

from arbitrage_cli.model_files.checksums import known_sha256
from arbitrage_cli.numbers.formatting import size_words
from arbitrage_cli.system.files import models_folder

DRAFT, TARGET = "user/Draft-GGUF", "user/Target-GGUF"
USAGE, MODEL = 2, 3
BIG = bytes(range(256)) * 20_000  # about 5 MB, no GGUF
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
    listed = next(record for record in pair.run("models", "list", "--json").records if record.get("pair") == "builtin")
    assert listed["draft"]["bytes"] == (models_folder() / "draft.gguf").stat().st_size
    assert not pair.hub.requests


def test_dry_run_shows_what_pull_would_download(pair: HubFixture, tiny: Mapping[str, Path]) -> None:
    assert pair.run("models", "pull", DRAFT, "-q").code == 0
    shown = pair.run("models", "pull", "mine", "--dry-run")
    assert (shown.code, shown.err) == (0, "")
    draft, target, total = (line.split() for line in shown.out.splitlines())
    assert (draft[0], draft[-1]) == ("here", "Draft-Q4_K_M.gguf")
    assert (target[:2], target[-1]) == (["not", "here"], "target.q8_0.gguf")
    assert total == ["to", "download:", "1", "file,", *size_words(tiny["target"].stat().st_size).split()]
    assert len(pair.hub.downloads()) == 1
    assert_refused(pair.run("models", "pull", "mine", "--dry-run", "--offline"), MODEL, "", "not on this machine")


def test_killed_pull_downloads_the_file_again(pair: HubFixture, tiny: Mapping[str, Path]) -> None:
    """The file that a killed command leaves has the published size, but is not used."""
    at_the_end = "huggingface_hub.file_download._chmod_and_move"
    killed = run("models", "pull", DRAFT, env=pair.env(), interrupt_in=at_the_end, signals=[signal.SIGKILL])
    assert (killed.code, killed.out) == (-signal.SIGKILL, "")
    assert [path.stat().st_size for path in pair.folder.rglob("*.incomplete")] == [tiny["draft"].stat().st_size]
    assert pair.run("models", "pull", DRAFT, "--dry-run").out.startswith("not here")
    again = pair.run("models", "pull", DRAFT, "-q")
    assert Path(again.out.strip()).read_bytes() == tiny["draft"].read_bytes()
    assert len(pair.hub.downloads()) == 2


def test_pull_removes_what_a_killed_pull_left(pair: HubFixture) -> None:
    """Unless it was written just now, or belongs to another file."""
    blob = Path(pair.run("models", "pull", DRAFT, "-q").out.strip()).resolve()
    an_hour_ago = time.time() - 3600
    old, new, other = (blob.with_name(f"{name}.incomplete") for name in (f"{blob.name}.0a1b2c3d", f"{blob.name}.1", "ff.2"))
    for path in (old, new, other):
        path.write_bytes(b"GGUF")
    for path in (old, other):
        os.utime(path, (an_hour_ago, an_hour_ago))
    assert pair.run("models", "pull", DRAFT, "-q").code == 0
    assert sorted(blob.parent.iterdir()) == sorted([blob, new, other])


@pytest.mark.slow
def test_pull_killed_again_and_again_leaves_no_wrong_file(place: HubFixture) -> None:
    """At each change of a file by the program, and at any time while a file is downloaded."""
    place.offers(DRAFT, **{"big-Q4_K_M": BIG})
    draw, codes = random.Random(7), list[int]()
    faults: list[dict[str, Any]] = [{"fault": {"number": number, "action": "kill"}} for number in range(1, 9)]
    for order in within(30.0, (*faults, *({"kill_after": draw.uniform(0.1, 1.0)} for _ in range(9)))):
        shutil.rmtree(place.folder / ("hf" if len(codes) % 3 else "cache"), ignore_errors=True)
        codes.append(run("models", "pull", DRAFT, env=place.env(), **order).code)
        found = place.run("models", "pull", DRAFT, "--offline", "-q")
        assert found.code == MODEL or Path(found.out.strip()).read_bytes() == BIG
        pulled = place.run("models", "pull", DRAFT, "-q")
        assert (pulled.code, Path(pulled.out.strip()).read_bytes() == BIG) == (0, True), pulled.err
    assert -signal.SIGKILL in codes


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


def test_a_damaged_file_is_an_error_and_its_name_cannot_drive_the_terminal(tiny: Mapping[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copy(tiny["draft"], tmp_path / "model.gguf"))
    known_sha256([path])
    state = path.stat()
    path.write_bytes(tiny["draft"].read_bytes().replace(b"tiny draft", b"\x1b[2Jxdraft"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    shown = run("models", "info", path)
    assert (shown.code, ESCAPE in shown.stdout) == (MODEL, False)
    assert all(word in shown.out for word in ("xdraft", "DAMAGED"))


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
