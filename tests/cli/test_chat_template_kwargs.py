"""Variables for chat templates: those of a pair, on tiny models one of which may think."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cli import Result, assert_refused, flat, pair_named_mine, run

THINK = {"enable_thinking": True}


def write(tiny: Mapping[str, Path], folder: Path, variables: Any, *arguments: str, **more: object) -> Result:
    """A solution of the tiny target as that of a pair with these variables; None: none."""
    lines = [f"{name} = {str(value).lower()}" for name, value in (variables or {}).items()]
    env = pair_named_mine(folder, **{"draft": tiny["draft"], "target": tiny["target"]} | more)
    if variables is not None:
        with (folder / "arbitrage" / "pairs.toml").open("a") as file:
            file.write(f"chat_template_kwargs = {{ {', '.join(lines)} }}\n")
    command = ("solve", "1 + 1", "--policy", "target", "--max-tokens", "24", "--threads", "1", "--json")
    return run(*command, *(arguments or ("--pair", "mine")), env=env)


def text(result: Result) -> str:
    assert result.code == 0, result.err
    (record,) = result.records
    return str(record["text"])


def test_variable_that_the_template_asks_for_changes_the_text(tiny: Mapping[str, Path], tmp_path: Path) -> None:
    plain = text(write(tiny, tmp_path, None))
    assert text(write(tiny, tmp_path, {"enable_thinking": False})) == plain
    assert text(write(tiny, tmp_path, THINK)) != plain


def test_pair_of_a_settings_file_is_not_used_for_other_models(tiny: Mapping[str, Path], tmp_path: Path) -> None:
    """Of two other models nothing of the pair is used; if only one of them is another, it is, with a note."""
    (tmp_path / "arbitrage").mkdir()
    (tmp_path / "arbitrage" / "config.toml").write_text('pair = "mine"\n')
    both = ("--draft", str(tiny["draft"]), "--target", str(tiny["target"]))
    own = {"draft": "scripted:draft", "system": "Hm."}
    result = write(tiny, tmp_path, THINK, *both, **own)
    assert text(result) == text(write(tiny, tmp_path, None))
    assert "pair mine" not in result.err
    thinking = text(write(tiny, tmp_path, THINK, "--pair", "mine", *both, **own))
    assert thinking == text(write(tiny, tmp_path, THINK, system="Hm.")) != text(result)
    other = str(tiny["spm"])
    assert f"{other}: not in pair mine" in flat(write(tiny, tmp_path, THINK, "--target", other, **own).err)
    assert "pair mine" not in write(tiny, tmp_path, THINK, "--draft", other, **own).err


def test_name_that_no_template_uses_changes_nothing_and_is_noted(tiny: Mapping[str, Path], tmp_path: Path) -> None:
    result = write(tiny, tmp_path, {"enable_thinkng": True})
    assert text(result) == text(write(tiny, tmp_path, None))
    assert "'enable_thinkng'" in result.err
    assert "'enable_thinking'" not in write(tiny, tmp_path, THINK).err


@pytest.mark.parametrize("name", ["messages", "bos_token"])
def test_variables_of_the_program_are_refused_before_a_model_is_loaded(
    name: str, tiny: Mapping[str, Path], tmp_path: Path
) -> None:
    assert_refused(write(tiny, tmp_path, {name: "1"}), 2, "", name)
