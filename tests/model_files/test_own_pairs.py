"""Pairs that are added to the user's pairs.toml."""

import tomllib
from pathlib import Path

import pytest

from arbitrage_cli.errors import PairNotSavedError, UsageError
from arbitrage_cli.model_files.own_pairs import add_pair, check_can_add, check_name
from arbitrage_cli.model_files.pairs import ModelEntry, PairEntry, read_pairs

PAIR = PairEntry(
    "mine.2",
    ModelEntry("a.gguf"),
    ModelEntry("https://host/v1#b", api_key_env="KEY", price="0.5/1"),
    check=ModelEntry('c "2".gguf'),
    policy="arbitrage",
    tau="careful",
    ctx=2048,
    system="",
    chat_template_kwargs={"enable_thinking": False},
)
OTHER = b'[other]\ndraft.source = "a.gguf"\ntarget.source = "b.gguf"\n'


@pytest.mark.parametrize(
    "before",
    [
        b"",
        b"# only a comment",
        OTHER,
        OTHER.rstrip(),
        OTHER.replace(b"\n", b"\r\n"),
        OTHER + b"\n\n# the end\n\n",
        b'other = { draft.source = "a", target.source = "b" }  # inline',
        OTHER + b'[broken]\ndraft = """\n[mine]\n"""\n',
    ],
)
def test_a_pair_is_added_and_everything_else_stays(tmp_path: Path, before: bytes) -> None:
    path = tmp_path / "settings" / "pairs.toml"
    if before:
        path.parent.mkdir()
        path.write_bytes(before)
    check_can_add(path, PAIR)
    assert path.exists() is bool(before)
    add_pair(path, PAIR)
    after = path.read_bytes()
    assert after.startswith(before)
    tables = tomllib.loads(after.decode())
    tables.pop(PAIR.name)
    assert tables == tomllib.loads(before.decode())
    assert read_pairs(path)[PAIR.name] == PAIR
    with pytest.raises(PairNotSavedError, match="already"):
        add_pair(path, PAIR)
    assert path.read_bytes() == after


def test_an_included_pair_may_have_the_name(tmp_path: Path) -> None:
    path = tmp_path / "pairs.toml"
    own = PairEntry("builtin", ModelEntry("a.gguf"), ModelEntry("b.gguf"))
    add_pair(path, own)
    assert read_pairs(path)["builtin"] == own


@pytest.mark.parametrize("content", [b"[mine\n", b"\xff", b'["mine.2"]\ndraft = 1\n', None], ids=str)
def test_a_file_that_cannot_take_the_pair_is_not_touched(tmp_path: Path, content: bytes | None) -> None:
    """Not valid, with a broken pair of this name, or no file. The error has the table, so that nothing is lost."""
    path = tmp_path / "pairs.toml"
    path.mkdir() if content is None else path.write_bytes(content)
    for call in (check_can_add, add_pair):
        with pytest.raises(PairNotSavedError) as refused:
            call(path, PAIR)
        assert tomllib.loads("\n".join(refused.value.lines))[PAIR.name]["target"]["api_key_env"] == "KEY"
        assert str(path) in refused.value.message
    assert path.is_dir() if content is None else path.read_bytes() == content


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for call in (check_can_add, add_pair):
        with pytest.raises(PairNotSavedError, match="cannot be written"):
            call(tmp_path / "file" / "pairs.toml", PAIR)


@pytest.mark.parametrize("name", ["", " ", "-x", ".x", "a b", "a/b", "a:b", "a\nb", "x" * 65, "[x]"])
def test_a_name_that_commands_would_misread_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


@pytest.mark.parametrize("name", ["mine", "qwen2.5-math", "7B_fast", "größer"])
def test_names_of_pairs(name: str, tmp_path: Path) -> None:
    check_name(name)
    add_pair(path := tmp_path / "pairs.toml", PairEntry(name, ModelEntry("a.gguf"), ModelEntry("b.gguf")))
    assert name in read_pairs(path)
