"""Pairs by name, and models by path or name."""

from pathlib import Path

import pytest
from pairs_file import add_pair

from arbitrage_cli.errors import UsageError
from arbitrage_cli.model_files.hub import HubName
from arbitrage_cli.model_files.pairs import (
    ModelEntry,
    PairEntry,
    find_files,
    find_pair,
    hub_name,
    local_files,
    read_pairs,
)


def test_shipped_pairs() -> None:
    pairs = read_pairs()
    built_in, qwen = {"builtin", "builtin-thinking"}, {"qwen3", "qwen2.5-math", "qwen2.5-math-3bit", "qwen2.5-coder"}
    assert set(pairs) == built_in | qwen | {"llama3", "gemma3"}
    for pair in pairs.values():
        assert pair.notes
        for source in (pair.draft.source, pair.target.source):
            assert hub_name(source) or all(path.is_file() for path in find_files(source))


def test_own_pairs(tmp_path: Path) -> None:
    own = tmp_path / "pairs.toml"
    assert read_pairs(own) == read_pairs()
    own.write_text(
        '[mine]\ndraft.source = "a.gguf"\ntarget.source = "b.gguf"\nctx = 8192\n'
        "chat_template_kwargs = { enable_thinking = false }\n"
        '[llama3.draft]\nsource = "c.gguf"\n[llama3.target]\nsource = "d.gguf"\n'
    )
    pairs = read_pairs(own)
    assert pairs["mine"] == PairEntry(
        "mine", ModelEntry("a.gguf"), ModelEntry("b.gguf"), ctx=8192, chat_template_kwargs={"enable_thinking": False}
    )
    assert pairs["llama3"] == PairEntry("llama3", ModelEntry("c.gguf"), ModelEntry("d.gguf"))
    assert "qwen2.5-math" in pairs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[mine\n", "not valid TOML"),
        ('draft = "a.gguf"\n', "'draft': this key is not allowed in a pair"),
        ('[mine]\ndraft.source = "a.gguf"\n', "target: "),
        ('[mine]\ntarget.source = "a.gguf"\ndraft.source = ""\n', "draft.source: "),
        ('[mine]\ndraft.source = "a.gguf"\ntarget.source = "b.gguf"\nheat = "c"\n', "heat: unknown key"),
        ('[mine]\ndraft.source = "a"\ntarget.source = "b"\ntarget.heat = 1\n', "target.heat: unknown key"),
        ('[mine]\ndraft.source = "a.gguf"\ntarget.source = "b.gguf"\nctx = -1\n', "ctx: "),
        (
            '[mine]\ndraft.source = "a.gguf"\ntarget.source = "b.gguf"\nchat_template_kwargs = "a"\n',
            "chat_template_kwargs: ",
        ),
        ('[mine]\ndraft.source = "a"\ntarget.source = "b"\nchat_template_kwargs = { messages = [] }\n', "reserved"),
        ('[mine]\ndraft.source = "a"\ntarget.source = "b"\nchat_template_kwargs = { day = 2026-11-26 }\n', "not JSON"),
        ('[mine]\ndraft.source = "a"\ntarget.source = "b"\nchat_template_kwargs = { a = [{ b = nan }] }\n', "not JSON"),
        ("\udcff", "not valid TOML"),
        ("a = " + "[" * 5000 + "]" * 5000, "not valid TOML"),
    ],
)
def test_own_pairs_that_make_no_sense(tmp_path: Path, text: str, words: str) -> None:
    own = tmp_path / "pairs.toml"
    own.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=r"pairs\.toml") as caught:
        find_pair("mine" if text.startswith("[mine]") else "draft", read_pairs(own))
    assert words in caught.value.message
    assert caught.value.hint


def test_a_broken_entry_stops_only_its_own_pair(tmp_path: Path) -> None:
    """A broken entry also hides the shipped pair of its name."""
    own = tmp_path / "pairs.toml"
    own.write_text('[llama3]\ndraft = "a"\n[mine]\ndraft.source = "a.gguf"\ntarget.source = "b.gguf"\n')
    pairs = read_pairs(own)
    assert find_pair("mine", pairs) == PairEntry("mine", ModelEntry("a.gguf"), ModelEntry("b.gguf"))
    assert pairs.broken.keys() == {"llama3"}
    with pytest.raises(UsageError, match=r"pairs\.toml: pair 'llama3': draft"):
        find_pair("llama3", pairs)


def test_unknown_pair() -> None:
    with pytest.raises(UsageError, match="'lama3'") as caught:
        find_pair("lama3", read_pairs())
    assert all(words in caught.value.hint for words in ("llama3", "arbitrage guide settings"))


def test_what_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_name("user/repo") == HubName("user/repo")
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "repo").write_bytes(b"GGUF")
    assert hub_name("user/repo") is None
    assert local_files("user/repo") == find_files("user/repo") == (Path("user/repo"),)


@pytest.mark.parametrize(
    "source", ["missing.gguf", "models/missing.gguf", "~nobody-has-this-name/x", "x" * 5000, "a\0b", ""]
)
def test_paths_to_nothing(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_name(source) is None
    assert find_files(source) == (Path(source),)


def test_any_text_can_be_written(tmp_path: Path) -> None:
    path, notes = tmp_path / "pairs.toml", '\U0001f600 \u2028\x85 "\\\n\x00\x1f\x7f'
    pair = PairEntry(
        "\U0001f600\x7f",
        ModelEntry("a.gguf"),
        ModelEntry("b.gguf"),
        notes,
        chat_template_kwargs={"\U0001f600": [True, "\x7f"], "\x7f": {"a": 1}},
    )
    add_pair(path, pair)
    assert read_pairs(path)[pair.name] == pair
