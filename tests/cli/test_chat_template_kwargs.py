"""Variables for chat templates: from a flag, a pair or a settings file, on tiny models one of which may think."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from cli import HERE, Result, assert_refused, flat, run

KWARGS = "--chat-template-kwargs"
THINK = '{"enable_thinking": true}'


def write(tiny: Mapping[str, Path], *arguments: str, folder: Path | None = None, cwd: Path = HERE) -> Result:
    """A solution of the tiny target, with the settings of a folder if it has some."""
    command = ("solve", "1 + 1", "--policy", "target", "--max-tokens", "24", "--threads", "1", "--json")
    models = () if folder else ("--draft", str(tiny["draft"]), "--target", str(tiny["target"]))
    return run(*command, *models, *arguments, cwd=cwd, env={"XDG_CONFIG_HOME": str(folder)} if folder else None)


def text(result: Result) -> str:
    assert result.code == 0, result.err
    (record,) = result.records
    return str(record["text"])


def write_pair(folder: Path, draft: object, target: object, more: str = "") -> None:
    (folder / "arbitrage").mkdir()
    (folder / "arbitrage" / "pairs.toml").write_text(
        f'[mine]\ndraft = "{draft}"\ntarget = "{target}"\n{more}chat_template_kwargs = {{ enable_thinking = true }}\n'
    )


def test_variable_that_the_template_asks_for_changes_the_text(tiny: Mapping[str, Path]) -> None:
    plain = text(write(tiny))
    assert text(write(tiny, KWARGS, '{"enable_thinking": false}')) == plain
    assert text(write(tiny, KWARGS, THINK)) != plain


def test_pair_has_variables_of_its_own_and_a_flag_wins(tiny: Mapping[str, Path], tmp_path: Path) -> None:
    write_pair(tmp_path, tiny["draft"], tiny["target"])
    assert text(write(tiny, "--pair", "mine", folder=tmp_path)) == text(write(tiny, KWARGS, THINK))
    assert text(write(tiny, "--pair", "mine", KWARGS, "{}", folder=tmp_path)) == text(write(tiny))


def test_pair_of_a_settings_file_is_not_used_for_other_models(tiny: Mapping[str, Path], tmp_path: Path) -> None:
    """Of two other models nothing of the pair is used; if only one of them is another, it is, with a note."""
    write_pair(tmp_path, "scripted:draft", tiny["target"], 'system = "Hm."\n')
    (tmp_path / "arbitrage" / "config.toml").write_text('pair = "mine"\n')
    both = ("--draft", str(tiny["draft"]), "--target", str(tiny["target"]))
    flags = (THINK, "--system", "Hm.")
    result = write(tiny, *both, folder=tmp_path)
    assert text(result) == text(write(tiny)) != text(write(tiny, KWARGS, *flags))
    assert "pair mine" not in result.err
    assert text(write(tiny, "--pair", "mine", *both, folder=tmp_path)) == text(write(tiny, KWARGS, *flags))
    other = str(tiny["spm"])
    assert f"{other}: not in pair mine" in flat(write(tiny, "--target", other, folder=tmp_path).err)
    assert "pair mine" not in write(tiny, "--draft", other, folder=tmp_path).err


@pytest.mark.parametrize("setting", ["{ enable_thinking = true }", f"'{THINK}'"], ids=["table", "text"])
def test_settings_file_has_them_as_a_table_or_text(setting: str, tiny: Mapping[str, Path], tmp_path: Path) -> None:
    (tmp_path / "arbitrage.toml").write_text(f"chat-template-kwargs = {setting}\n")
    assert text(write(tiny, cwd=tmp_path)) == text(write(tiny, KWARGS, THINK))


def test_name_that_no_template_uses_changes_nothing_and_is_noted(tiny: Mapping[str, Path]) -> None:
    result = write(tiny, KWARGS, '{"enable_thinkng": true}')
    assert text(result) == text(write(tiny))
    assert "'enable_thinkng'" in result.err
    assert "'enable_thinking'" not in write(tiny, KWARGS, THINK).err


@pytest.mark.parametrize(
    "given",
    [
        "enable_thinking=false",
        "[1]",
        "[" * 100_000,
        '{"messages": []}',
        '{"share": NaN}',
        '{"shares": [1e999]}',
        '{"bos_token": "x"}',
    ],
    ids=lambda value: value[:24],
)
def test_bad_variables_are_refused_before_a_model_is_loaded(given: str, tiny: Mapping[str, Path]) -> None:
    assert_refused(write(tiny, KWARGS, given), 2, f"{KWARGS}: ")
