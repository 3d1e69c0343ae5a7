"""`arbitrage guide`: the topics, and how one is shown in a terminal and elsewhere."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from cli import ESCAPE, Terminal, environment, run

import arbitrage_cli
from arbitrage_cli.cli.app import make_app

FILES = sorted((Path(arbitrage_cli.__file__).parent / "guides").glob("*.md"))


def test_topics_are_listed_with_what_they_are_about() -> None:
    lines = run("guide").out.splitlines()
    assert [line.split()[0] for line in lines] == sorted([*(path.stem for path in FILES), "options"])
    assert all(len(line.split()) > 3 for line in lines)


def test_help_starts_without_numpy() -> None:
    code = "import sys; sys.modules['numpy'] = None; from arbitrage_cli.cli.main import main; sys.exit(main(sys.argv[1:]))"
    for flag in ("--help", "--version"):
        subprocess.run([sys.executable, "-c", code, flag], check=True, capture_output=True, env=environment())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_pipe_gets_the_markdown(path: Path) -> None:
    assert run("guide", path.stem).stdout == path.read_bytes()


def test_the_options_that_help_only_names_are_described() -> None:
    """Each option of a command is in its --help or, if several commands share it, in the guide."""
    page = run("guide", "options").out
    root: Any = typer.main.get_command(make_app())
    for command in (*root.commands.values(), *root.commands["models"].commands.values()):
        hidden = [one.opts[0] for one in command.params if getattr(one, "hidden", False)]
        assert [flag for flag in hidden if f"`{flag}" not in page or flag not in command.help] == []


def test_terminal_gets_it_rendered_in_the_pager() -> None:
    with Terminal("guide", "routing", columns=140, env={"PAGER": "sed s/^/page:/", "MANPAGER": None}) as terminal:
        assert terminal.wait() == 0
        lines = terminal.text.splitlines()
    assert all(line.startswith("page:") for line in lines)
    assert not any(line.startswith(("page:#", "page:|")) for line in lines)
    assert ESCAPE in terminal.raw
