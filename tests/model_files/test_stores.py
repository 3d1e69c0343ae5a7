"""Models of Ollama, LM Studio and llama.cpp, in trees as these programs write them: valid, damaged, huge and with links."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import model_stores
import pytest
from altered_gguf import alter
from cli import Result, assert_refused, run
from faults import write_problems
from gguf import GGUFValueType
from huggingface_hub import constants
from model_stores import KIND, blob, manifest, ollama_has, put

from arbitrage_cli.errors import ModelFileError
from arbitrage_cli.model_files.pairs import find_files, found_names, hub_name, local_files

OWN = "registry.ollama.ai/library"
LM_STUDIO = ".lmstudio/models/maker/Small-GGUF"
MODEL = 3
USED = ("solve", "1 + 1", "--policy", "draft", "--max-tokens", "4", "--threads", "1", "--json", "-q")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in model_stores.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))  # read from the environment only once per process
    return tmp_path


def arbitrage(home: Path, *arguments: str) -> Result:
    return run(*arguments, env=model_stores.environment(home))


@pytest.mark.parametrize(
    ("place", "name", "linked"),
    [
        (f"{OWN}/qwen2.5/7b", "ollama:qwen2.5:7b", False),
        (f"{OWN}/qwen2.5/latest", "ollama:qwen2.5", False),
        ("ollama.com/library/qwen2.5/7b", "ollama:qwen2.5:7b", True),
        ("registry.ollama.ai/maker/small/q4_K_M", "ollama:maker/small:q4_K_M", False),
        ("hf.co/maker/Small-GGUF/Q4_0", "ollama:hf.co/maker/Small-GGUF:Q4_0", True),
    ],
)
def test_a_model_of_ollama(home: Path, place: str, name: str, linked: bool) -> None:
    ollama_has(home, place, manifest(home, model=b"a model", projector=b"eyes"), linked=linked)
    (path,) = find_files(name)
    assert path.read_bytes() == b"a model"
    assert local_files(name) == (path,)
    assert hub_name(name) is None
    assert next(found_names()).startswith(name)


def test_a_list_of_manifests_has_one_for_each_runner(home: Path) -> None:
    """A child is in the list, or in a blob that the list names."""
    other, gguf = manifest(home, tensor=b"safetensors"), manifest(home, model=b"a model")
    named = {"runner": "llamacpp", "digest": blob(home, json.dumps(gguf).encode())}
    for tag, children in {"inside": [other, gguf], "named": [other, named]}.items():
        ollama_has(home, f"{OWN}/small/{tag}", {"manifests": children})
        assert find_files(f"ollama:small:{tag}")[0].read_bytes() == b"a model"


def test_lists_of_lists_of_manifests_are_not_followed(home: Path) -> None:
    """Each would be read twice as often as the list that names it."""
    content: dict[str, Any] = {"layers": []}
    for _ in range(40):
        content = {"manifests": [{"digest": blob(home, json.dumps(content).encode())}] * 2}
    ollama_has(home, f"{OWN}/small/latest", json.dumps(content).encode())
    assert local_files("ollama:small") == ()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"no JSON", b"[]", b"null", b'{"layers": [{}]}', b'{"layers": 1}', b'{"manifests": [1]}', b"[" * 100_000,
        json.dumps({"layers": [{"mediaType": f"{KIND}model", "digest": "sha256:../../../secret"}]}).encode(),
        json.dumps({"layers": [{"mediaType": f"{KIND}model", "digest": f"sha256:{'a' * 64}"}]}).encode(),
        json.dumps({"layers": []}).encode(), b"{}" + b" " * (2 << 20),
    ],
)  # fmt: skip
def test_a_damaged_manifest(home: Path, content: bytes) -> None:
    ollama_has(home, f"{OWN}/small/latest", content)
    assert local_files("ollama:small") == ()
    with pytest.raises(ModelFileError) as caught:
        find_files("ollama:small")
    assert caught.value.message.startswith("ollama:small:")
    assert caught.value.hint


def test_a_damaged_file(home: Path, tiny: Mapping[str, Path]) -> None:
    """The name of a blob contains its sha256."""
    data = tiny["draft"].read_bytes()
    ollama_has(home, f"{OWN}/small/latest", manifest(home, model=data))
    find_files("ollama:small")[0].write_bytes(data.replace(b"tiny draft", b"tiny craft"))
    assert_refused(arbitrage(home, *USED, "--draft", "ollama:small"), MODEL, str(home))


def test_an_adapter_or_a_projector_is_no_model(home: Path, tiny: Mapping[str, Path], tmp_path: Path) -> None:
    ollama_has(home, f"{OWN}/tuned/latest", manifest(home, model=b"a model", adapter=b"lora"))
    put(home / LM_STUDIO / "mmproj-small.gguf", b"GGUF")
    for kind, value in {"general.type": "adapter", "general.architecture": "clip"}.items():
        alter(tiny["draft"], tmp_path / f"{value}.gguf", {kind: (GGUFValueType.STRING, value)})
        assert_refused(arbitrage(home, "models", "info", str(tmp_path / f"{value}.gguf")), MODEL, str(tmp_path))
    for source in ("ollama:tuned", "lmstudio:maker/Small-GGUF"):
        assert_refused(arbitrage(home, *USED, "--draft", source), MODEL)


@pytest.mark.parametrize("place", ["", "moved", "elsewhere", "damaged"])
def test_lm_studio(home: Path, place: str) -> None:
    """Its folder, or the one that its pointer names, or the folder of models that its settings name."""
    root = home / LM_STUDIO
    (home / ".lmstudio").mkdir()
    if place == "moved":
        put(home / ".lmstudio-home-pointer", f"{home}/studio\n".encode())
        root = home / "studio/models/maker/Small-GGUF"
    elif place == "elsewhere":
        put(home / ".lmstudio/settings.json", json.dumps({"downloadsFolder": f"{home}/big"}).encode())
        root = home / "big/maker/Small-GGUF"
    elif place == "damaged":
        put(home / ".lmstudio-home-pointer", b" \n")
        put(home / ".lmstudio/settings.json", b'{"downloadsFolder": ["big"]}')
    q4 = put(root / "Small-Q4_K_M.gguf", b"GGUF")
    for other in ("mmproj-Small.gguf", "Small-mmproj-F16.gguf"):
        put(root / other, b"GGUF")
    names = {"lmstudio:maker/Small-GGUF", "lmstudio:maker/Small-GGUF/Small-Q4_K_M.gguf"}
    assert {path for name in names for path in find_files(name)} == {q4}
    put(root / "Small-Q8_0.gguf", b"GGUF")
    with pytest.raises(ModelFileError, match=r"Small-Q4_K_M\.gguf, Small-Q8_0\.gguf"):
        find_files("lmstudio:maker/Small-GGUF")
    assert [*found_names()] == [f"lmstudio:maker/Small-GGUF/Small-{quant}.gguf" for quant in ("Q4_K_M", "Q8_0")]


def test_a_file_whose_name_says_that_it_is_none_of_no_parts_is_one_file(home: Path) -> None:
    path = put(home / LM_STUDIO / "small-00000-of-00000.gguf", b"GGUF")
    assert [*found_names()] == [f"lmstudio:maker/Small-GGUF/{path.name}"]
    assert find_files("lmstudio:maker/Small-GGUF") == local_files(str(path)) == (path,)


def test_models_in_the_cache_of_the_hub_which_llama_cpp_uses_too(home: Path) -> None:
    commit = "c" * 40
    put(home / "hub/models--maker--Small-GGUF/refs/main", commit.encode())
    for number in (1, 2):
        put(home / f"hub/models--maker--Small-GGUF/snapshots/{commit}/q8-0000{number}-of-00002.gguf", b"GGUF")
    found = [record["model"] for record in arbitrage(home, "models", "list", "--json").records if "model" in record]
    assert found == ["maker/Small-GGUF:q8-00001-of-00002.gguf"]


@pytest.mark.parametrize(
    "reference", [b"", bytes(40), b"\xff\xfe", b"c" * 5000, b".."], ids=["empty", "zeros", "no text", "long", "a folder"]
)
def test_a_damaged_reference_in_the_cache_of_the_hub_names_no_file(home: Path, reference: bytes) -> None:
    put(home / "hub/models--maker--Small-GGUF/refs/main", reference)
    put(home / f"hub/models--maker--Small-GGUF/snapshots/{'c' * 40}/q8.gguf", b"GGUF")
    assert local_files("maker/Small-GGUF:q8") == ()
    assert [*found_names()] == []


@pytest.mark.parametrize(
    "name",
    [
        "ollama:", "ollama:nothing", "ollama:../../etc/passwd", "ollama:a/b/c/d:e", f"ollama:{'a' * 300}", "ollama:a:b:c",
        "ollama:\0", "lmstudio:", "lmstudio:maker/nothing", f"lmstudio:{'a' * 300}",
    ],
)  # fmt: skip
def test_names_of_nothing(home: Path, name: str) -> None:
    assert local_files(name) == ()
    with pytest.raises(ModelFileError):
        find_files(name)


def test_links_are_followed_but_not_in_circles(home: Path, tiny: Mapping[str, Path]) -> None:
    folder = home / LM_STUDIO
    folder.mkdir(parents=True)
    (folder / "small.gguf").symlink_to(tiny["draft"])
    (folder / "circle.gguf").symlink_to(folder / "circle.gguf")
    (folder / "gone.gguf").symlink_to(home / "gone")
    (folder.parent / "circle").symlink_to(folder.parent.parent)
    name = "lmstudio:maker/Small-GGUF/small.gguf"
    records = [record for record in arbitrage(home, "models", "list", "--json").records if "model" in record]
    assert [record["model"] for record in records if "error" not in record] == [name]
    assert len(records) > 1
    assert arbitrage(home, *USED, "--draft", name).records[0]["steps"]


def test_a_folder_that_cannot_be_read(home: Path) -> None:
    put(home / ".lmstudio-home-pointer", b"x" * 5000)
    ollama_has(home, f"{OWN}/small/1b", manifest(home, model=b"a model"))
    assert local_files("lmstudio:maker/Small-GGUF") == ()
    with pytest.raises(ModelFileError):
        find_files("lmstudio:maker/Small-GGUF")
    listed = arbitrage(home, "models", "list", "--json")
    assert (listed.code, listed.records[-1]["model"], listed.err.count("LM Studio")) == (0, "ollama:small:1b", 1)


def test_the_list_shows_what_can_be_used(home: Path, tiny: Mapping[str, Path]) -> None:
    ollama_has(home, f"{OWN}/small/1b", manifest(home, model=tiny["draft"].read_bytes()))
    ollama_has(home, f"{OWN}/broken/latest", b"no JSON")
    put(home / f"ollama/manifests/{OWN}/small/.DS_Store", b"")
    put(home / LM_STUDIO / "small.gguf", tiny["draft"].read_bytes())
    records = [record for record in arbitrage(home, "models", "list", "--json").records if "model" in record]
    broken, small, copy = records
    assert broken.keys() == {"model", "error"}
    assert {small["model"], copy["model"]} == {"ollama:small:1b", "lmstudio:maker/Small-GGUF/small.gguf"}
    assert small["file_bytes"] == tiny["draft"].stat().st_size
    assert small["trained_context_size"] == 2048
    listed = arbitrage(home, "models", "list").out
    assert all(record["model"] in listed for record in records)
    (described,) = arbitrage(home, "models", "info", "ollama:small:1b", "--json").records
    assert described["files"][0]["origin"] == "published"


def test_advise_proposes_pairs_and_runs_none_of_them(home: Path) -> None:
    """The built-in models are two sizes of one architecture."""
    models = Path(find_files("builtin:draft")[0]).parent
    for tag in ("draft", "target"):
        ollama_has(home, f"{OWN}/sums/{tag}", manifest(home, model=(models / f"{tag}.gguf").read_bytes()))
    proposed = ["--draft", "ollama:sums:draft", "--target", "ollama:sums:target"]
    (record,) = arbitrage(home, "advise", "--minutes", "0.01", "--json").records
    assert record == {"proposals": [" ".join(["arbitrage", "advise", "--minutes", "0.01", "--json", *proposed])]}
    shown = arbitrage(home, "advise")
    assert (shown.code, shown.err) == (0, "")
    assert f"  {' '.join(['arbitrage', 'advise', *proposed])}" in shown.out.splitlines()


def test_advise_continues_a_run_instead_of_proposing_pairs(home: Path) -> None:
    models = Path(find_files("builtin:draft")[0]).parent
    for tag in ("draft", "target"):
        ollama_has(home, f"{OWN}/sums/{tag}", manifest(home, model=(models / f"{tag}.gguf").read_bytes()))
    problems = str(write_problems(home / "sums.jsonl", ["2 + 3", "12 + 5"]))
    command = ("advise", "-o", str(home / "run"), "--dataset", problems, "--minutes", "0.1", "--json")
    own = {**model_stores.environment(home), "XDG_CONFIG_HOME": str(home)}
    assert "verdict" in run(*command, "--draft", "scripted:draft", "--target", "scripted:target", env=own).record
    assert "verdict" in run(*command, env=own).record
    assert "proposals" in run(*command, "--fresh", env=own).record
