"""Documents name only commands, options, settings, variables and fields that exist."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from cli import MODELS, QUESTION, run

from arbitrage_cli.cli.app import make_app
from arbitrage_cli.model_files.pairs import ModelEntry, PairEntry, read_pairs

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "arbitrage_cli"
GUIDES = PACKAGE / "guides"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(GUIDES.glob("*.md"))]
RECORDS = [ROOT / "CONTRIBUTING.md", ROOT / "models" / "README.md", ROOT / "tests" / "benchmarks" / "README.md"]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
each_document = pytest.mark.parametrize("page", [*PAGES, *RECORDS], ids=lambda page: str(page.relative_to(ROOT)))

OF_SERVERS = {"--interrupt_requests", "--spec-type", "--speculative-config"}
"""Options of servers, where they stand alone."""
OF_OTHERS = {"assert", "cu125", "j", "k", "kill", "llama-bench", "llm", "metal", "nobody", "openai", "pip", "protections"}
"""Words of other programs and of the report page."""


def commands() -> Iterator[tuple[str, Any]]:
    """Each command and command group by its words after `arbitrage`."""
    group: Any = typer.main.get_command(make_app())
    for name, command in group.commands.items():
        yield name, command
        yield from ((f"{name} {below}", made) for below, made in getattr(command, "commands", {}).items())


COMMANDS = dict(commands())
OPTIONS = {
    name: {
        "-h",
        "--help",
        *(flag for one in command.params for flag in (*one.opts, *one.secondary_opts)),
    }
    for name, command in COMMANDS.items()
} | {"": {"-h", "--help", "--version", "--install-completion", "--show-completion"}}
SETTINGS: Mapping[str, str] = {
    flag.removeprefix("--"): one.envvar
    for command in COMMANDS.values()
    for one in command.params
    for flag in one.opts
    if one.envvar
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def command_lines(page: Path) -> Iterator[list[str]]:
    """The words after `arbitrage` of each command line, in blocks and in backticks; those of a command without `arbitrage` too."""
    shell = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    quoted = spans(page.read_text(encoding="utf-8"))
    for line in [*shell.splitlines(), *quoted]:
        for part in re.split(r"[|&;<>]", line.partition("  #")[0]):
            if found := re.match(r"\s*(?:\S*bin/)?arbitrage\s+(\S.*)", part):
                yield shlex.split(found[1].replace("'", ""))
            elif line in quoted and part.split(" -")[0] in COMMANDS:
                yield shlex.split(part)


@each_document
def test_command_lines_have_commands_and_options_that_exist(page: Path) -> None:
    for words in command_lines(page):
        name = next((name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS), "")
        assert name or words[0].startswith("-") or not words[0].isalpha() or words[0].isupper(), words
        flags = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word) and word != "-inf"}
        assert flags <= OPTIONS[name], words


@each_document
def test_options_in_backticks_exist(page: Path) -> None:
    known = set().union(*OPTIONS.values()) | OF_SERVERS
    for span in spans(page.read_text(encoding="utf-8")):
        if re.match(r"--?[a-z]", span) and span != "-inf":
            assert {word.partition("=")[0] for word in span.split() if re.match(r"--?[a-z]", word)} <= known, span


@each_page
def test_variables_and_settings_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    variables = {name for name in re.findall(r"\bARBITRAGE_[A-Z_]+\b", text) if not name.endswith("_API_KEY")}
    assert variables <= {*SETTINGS.values(), "ARBITRAGE_DEBUG"}
    known = {
        *SETTINGS,
        *(name.replace("-", "_") for name in SETTINGS),
        *(one.name for one in (*fields(PairEntry), *fields(ModelEntry))),
    }
    for block in blocks(page, "toml"):
        content = tomllib.loads(block)
        tables = [value for value in content.values() if isinstance(value, dict)]
        tables += [model for table in tables for role in ("draft", "target") if isinstance(model := table.get(role), dict)]
        names = {name for name, value in content.items() if not isinstance(value, dict)}
        assert names.union(*tables) <= known, block


def names_in_source() -> Iterator[str]:
    """Short texts, fields, parameters and the API's methods in the package's source: what a user can type, read or call."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield from re.split(r"[,|:{}\s]+", node.value) if len(node.value) < 200 else ()
            elif isinstance(node, ast.FunctionDef) and path.name == "pair.py":
                yield node.name
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id
            elif isinstance(node, ast.arg):
                yield node.arg


@each_page
def test_words_in_backticks_are_known_to_the_program(page: Path) -> None:
    known = {*names_in_source(), *OF_OTHERS, *COMMANDS, *SETTINGS, *read_pairs()}
    words = {span for span in spans(page.read_text(encoding="utf-8")) if re.fullmatch(r"[a-z][a-z0-9_-]*", span)}
    assert words - known == set()


def test_guide_has_all_fields_of_a_record_and_no_others() -> None:
    record = run("solve", *MODELS, "--policy", "entropy", "--json", QUESTION).record
    _, _, text = (GUIDES / "output.md").read_text(encoding="utf-8").partition("## The JSON record")
    table, _, steps = text.partition("\n## ")[0].partition("A step has")
    named = {span for line in table.splitlines() if line.startswith("| `") for span in spans(line.split("|")[1])}
    assert named == record.keys()
    assert record["steps"][0].keys() <= set(spans(steps))
