"""What a user has the models' chat templates told: by a flag, by a pair, on tiny models one of which may think."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from cli import HERE, Result, flat, run

THINK = '{"enable_thinking": true}'


def write(tiny: Mapping[str, Path], *arguments: str, folder: Path | None = None, cwd: Path = HERE) -> Result:
    """What the tiny target writes about a problem, as a process."""
    command = ("solve", "1 + 1", "--policy", "target", "--max-tokens", "24", "--threads", "1", "--json")
    models = () if folder else ("--draft", str(tiny["draft"]), "--target", str(tiny["target"]))
    return run(*command, *models, *arguments, cwd=cwd, env={"XDG_CONFIG_HOME": str(folder)} if folder else None)


def text(result: Result) -> str:
    assert result.code == 0, result.err
    (record,) = result.records
    return str(record["text"])


def test_the_template_is_told(tiny: Mapping[str, Path]) -> None:
    plain = text(write(tiny))
    assert text(write(tiny, "--chat-template-kwargs", '{"enable_thinking": false}')) == plain
    assert text(write(tiny, "--chat-template-kwargs", THINK)) != plain


def test_a_pair_has_its_own(tiny: Mapping[str, Path], tmp_path: Path) -> None:
    (tmp_path / "arbitrage").mkdir()
    (tmp_path / "arbitrage" / "pairs.toml").write_text(
        f'[mine]\ndraft = "{tiny["draft"]}"\ntarget = "{tiny["target"]}"\nchat_template_kwargs = {{ enable_thinking = true }}\n'
    )
    assert text(write(tiny, "--pair", "mine", folder=tmp_path)) == text(write(tiny, "--chat-template-kwargs", THINK))
    assert text(write(tiny, "--pair", "mine", "--chat-template-kwargs", "{}", folder=tmp_path)) == text(write(tiny))


def test_a_pair_of_a_settings_file_does_not_hold_for_other_models(tiny: Mapping[str, Path], tmp_path: Path) -> None:
    (tmp_path / "arbitrage").mkdir()
    (tmp_path / "arbitrage" / "config.toml").write_text('pair = "mine"\n')
    (tmp_path / "arbitrage" / "pairs.toml").write_text(
        f'[mine]\ndraft = "scripted:draft"\ntarget = "{tiny["target"]}"\nsystem = "Hm."\nchat_template_kwargs = '
        "{ enable_thinking = true }\n"
    )
    both = ("--draft", str(tiny["draft"]), "--target", str(tiny["target"]))
    flags = (THINK, "--system", "Hm.")
    result = write(tiny, *both, folder=tmp_path)
    assert text(result) == text(write(tiny)) != text(write(tiny, "--chat-template-kwargs", *flags))
    assert "pair mine" not in result.err
    assert text(write(tiny, "--pair", "mine", *both, folder=tmp_path)) == text(write(tiny, "--chat-template-kwargs", *flags))
    other = str(tiny["spm"])
    result = write(tiny, "--target", other, folder=tmp_path)
    assert f"{other}: not in pair mine, but used with its system, chat_template_kwargs; flags override" in flat(result.err)
    assert "pair mine" not in write(tiny, "--draft", other, folder=tmp_path).err


@pytest.mark.parametrize("setting", ["{ enable_thinking = true }", f"'{THINK}'"], ids=["table", "text"])
def test_a_settings_file_may_have_it(setting: str, tiny: Mapping[str, Path], tmp_path: Path) -> None:
    (tmp_path / "arbitrage.toml").write_text(f"chat-template-kwargs = {setting}\n")
    assert text(write(tiny, cwd=tmp_path)) == text(write(tiny, "--chat-template-kwargs", THINK))


def test_a_name_that_no_template_knows(tiny: Mapping[str, Path]) -> None:
    result = write(tiny, "--chat-template-kwargs", '{"enable_thinkng": true}')
    assert text(result) == text(write(tiny))
    assert "no chat template of these models uses 'enable_thinkng'" in flat(result.err)
    assert "knows" not in write(tiny, "--chat-template-kwargs", THINK).err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("enable_thinking=false", "not a JSON object"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ('{"messages": []}', "sets a chat template's 'messages'"),
        ('{"share": NaN}', "is not JSON"),
        ('{"shares": [1e999]}', "is not JSON"),
        ('{"bos_token": "x"}', "sets a chat template's 'bos_token'"),
    ],
    ids=lambda value: value[:24],
)
def test_kwargs_that_make_no_sense(given: str, words: str, tiny: Mapping[str, Path]) -> None:
    result = write(tiny, "--chat-template-kwargs", given)
    assert (result.code, result.out) == (2, "")
    assert words in flat(result.err)
    assert "Traceback" not in result.err
