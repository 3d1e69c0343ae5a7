"""The house rules for files and documents. import-linter checks the imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from cli import environment

from arbitrage_cli.cli.app import make_app
from arbitrage_cli.inference.llama import BINDING, PREBUILT
from arbitrage_cli.routing.policies import POLICIES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "arbitrage_cli"
README = ROOT / "README.md"
GUIDES = PACKAGE / "guides"
OUTERMOST = ("cli.main", "problems.program_driver", "inference.rendering", "system.child", "inference.comparing")
"""Where a process or a thread ends: the program's own, that of a tested program, a fork that answers its parent, and the thread
that compares answers, whose errors are raised where the answers are needed."""
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("statement", "slow"),
    [
        ("import arbitrage_cli", "numpy llama_cpp typer rich arbitrage_cli.app.entries.pair"),
        ("from arbitrage_cli import open_pair", "typer rich"),
        ("import arbitrage_cli.cli.main", "llama_cpp numpy jinja2 huggingface_hub pydantic arbitrage_cli.display.live"),
        ("import arbitrage_cli.problems.answers", "sympy math_verify subprocess arbitrage_cli.problems.math_grader"),
    ],
)
def test_slow_imports_wait_until_they_are_needed(statement: str, slow: str) -> None:
    code = f"import sys; {statement}; print(sys.modules.keys() & {set(slow.split())})"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "set()\n"


every_module = pytest.mark.parametrize("path", MODULES, ids=name_of)


@every_module
def test_every_error_is_caught_in_one_place_only(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = {ast.unparse(kind) for kind in ast.walk(node.type) if isinstance(kind, ast.expr)} if node.type else {"all"}
        if name_of(path) in OUTERMOST:
            continue
        assert "Exception" not in caught
        if caught & {"all", "BaseException"}:
            assert isinstance(node.body[-1], ast.Raise)
            assert node.body[-1].exc is None


def test_paper_has_under_220_lines_and_no_input_or_output() -> None:
    path = PACKAGE / "arbitrage.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) < 220
    called = {ast.unparse(node.func) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)}
    assert not called & {"open", "print", "input"}


def text_of(*paths: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


@pytest.mark.parametrize("name", ["run", "test"])
def test_readme_has_the_commands_to_run_and_test(name: str) -> None:
    found = re.findall(rf"<!-- command: {name} -->\n+```\w*\n(.+?)\n```", text_of(README), re.DOTALL)
    assert len(found) == 1
    assert found[0].strip()


def test_readme_is_short() -> None:
    assert len(text_of(README).splitlines()) <= 200


def test_the_checked_versions_of_llama_cpp_are_the_pinned_ones() -> None:
    assert f'"llama-cpp-python=={BINDING}"' in text_of(ROOT / "pyproject.toml")
    assert f'"llama-cpp-py-sync=={PREBUILT} ;' in text_of(ROOT / "pyproject.toml")
    assert set(re.findall(r"llama-cpp-python==([\d.]+\d)", text_of(README, *GUIDES.glob("*.md")))) == {BINDING}


def test_every_exit_code_is_documented() -> None:
    table = re.findall(r"^\| ([\d, ]+) \|", text_of(GUIDES / "output.md"), re.MULTILINE)
    documented = {int(code) for codes in table for code in codes.split(",")}
    used = {int(code) for code in re.findall(r"exit_code(?:: int)? = (\d+)", text_of(PACKAGE / "errors.py"))}
    assert used <= documented


def test_every_policy_is_documented() -> None:
    rows = " ".join(line for line in text_of(GUIDES / "routing.md").splitlines() if line.startswith("| `"))
    assert {name for name in POLICIES if f"`{name}`" not in rows} == set()


def test_no_help_has_more_than_22_options() -> None:
    """The others are shared, and described by `arbitrage guide options`."""
    root: Any = typer.main.get_command(make_app())
    commands = {name: command for name, command in root.commands.items() if not hasattr(command, "commands")}
    counts = {
        name: sum(one.param_type_name == "option" and not one.hidden for one in command.params)
        for name, command in commands.items()
    }
    assert max(counts.values()) <= 22, counts


def test_the_fork_server_never_runs_llama_cpp() -> None:
    """A fork has no OpenMP threads and would wait for them forever where llama.cpp computes while loading (AMX)."""
    code = (
        "import fork_server; from arbitrage_cli.inference.llama.binding import start_llama;"
        "fork_server.warm_up(); print(start_llama.cache_info().misses)"
    )
    ended = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "0\n"), ended.stderr


def test_top_level_holds_only_the_files_of_the_design() -> None:
    wanted = "README.md CHANGELOG.md CONTRIBUTING.md LICENSE pyproject.toml arbitrage_cli models tests"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    found = {name.split("/")[0] for name in tracked.stdout.splitlines()}
    assert {name for name in found if not name.startswith(".")} <= {*wanted.split()}
