"""`arbitrage guide`: the topics, and how one is shown in a terminal and elsewhere."""

from pathlib import Path

import pytest
from cli import ESCAPE, Terminal, run

import arbitrage_cli

FILES = sorted((Path(arbitrage_cli.__file__).parent / "guides").glob("*.md"))


def test_without_a_topic_all_are_listed() -> None:
    lines = run("guide").out.splitlines()
    assert [line.split()[0] for line in lines] == [path.stem for path in FILES]
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_pipe_gets_the_markdown(path: Path) -> None:
    assert run("guide", path.stem).stdout == path.read_bytes()


def test_a_terminal_gets_it_rendered_in_the_pager() -> None:
    with Terminal("guide", "routing", columns=140, env={"PAGER": "sed s/^/page:/", "MANPAGER": None}) as terminal:
        assert terminal.wait() == 0
        lines = terminal.text.splitlines()
    assert all(line.startswith("page:") for line in lines)
    assert not any(line.startswith(("page:#", "page:|")) for line in lines)
    assert ESCAPE in terminal.raw


def test_a_terminal_without_colours_gets_the_markdown() -> None:
    with Terminal("guide", "settings", columns=200, env={"NO_COLOR": "1"}) as terminal:
        assert terminal.wait() == 0
    assert ESCAPE not in terminal.raw
    assert "# Settings" in terminal.text


def test_an_unknown_topic_is_refused() -> None:
    result = run("guide", "trainign")
    assert result.code == 2
    assert "did you mean 'training'" in result.err
    assert all(path.stem in result.err for path in FILES)


def test_it_works_with_a_broken_settings_file(tmp_path: Path) -> None:
    (tmp_path / "arbitrage.toml").write_text("nonsense = [")
    assert run("guide", "settings", cwd=tmp_path).code == 0
