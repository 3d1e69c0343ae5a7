"""The rules of the house: who may import what, what every file must have, and that the README is true."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from cli import run

from arbitrage_cli.commands.app import make_app

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "arbitrage_cli"
README = ROOT / "README.md"
MODULES = sorted(PACKAGE.rglob("*.py"))

RUNGS = (
    ("", "types", "errors"),
    (
        *("arbitrage", "steps", "sampling", "prompts", "datasets", "summary", "machine", "signals", "gguf_header"),
        *("hub_names", "backends", "proposals", "features", "measures", "run_folder", "labels", "intervals", "ratios"),
        "definitions",
        *("grading", "grader_child", "latex_text", "quantities"),
    ),
    (
        *("backends.llama_loading", "backends.llama_vocabulary", "backends.scripted", "hub", "gguf_facts"),
        *("policies", "cache", "evidence", "runs", "results", "answers", "router", "taus", "states", "tuned"),
    ),
    (
        "engine",
        "backends.llama",
        "grader",
        "learning",
        "curve",
        "throughput",
        "equivalents",
        "explaining",
        "tuning",
        "collected",
        "collecting",
    ),
    ("scheduler", "figures", "pairs"),
    ("rewards", "rollouts", "benchmark", "training", "comparison", "named_datasets"),
    ("commands",),
    ("__main__",),
)
LADDER = {name: number for number, names in enumerate(RUNGS) for name in names}
"""The package itself, named "", has only its version."""

REPORTERS_SEE = {"types", "errors", "runs", "summary", "definitions", "reporters"}
NUMPY_FREE = {"types", "errors", "arbitrage"}


def name_of(path: Path) -> str:
    """A module's name below the package: `backends.llama`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports anywhere; of `from x import y`, `x.y` where that is a module, else `x`."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            for alias in node.names:
                yield f"{node.module}.{alias.name}" if is_module(f"{node.module}.{alias.name}") else node.module


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def own_imports(path: Path) -> set[str]:
    """Names below the package of what a file imports from it."""
    found = {name for name in imports(path) if name.split(".")[0] == "arbitrage_cli"}
    return {name.removeprefix("arbitrage_cli").removeprefix(".") for name in found}


def packages(path: Path) -> set[str]:
    """Top-level names of what a file imports."""
    return {name.split(".")[0] for name in imports(path)}


def folder_of(name: str) -> str:
    return name.split(".")[0]


def rung(name: str) -> int:
    assert name in LADDER or folder_of(name) == "commands", f"{name} has no place on the ladder: give it one here"
    return LADDER["commands"] if folder_of(name) == "commands" else LADDER[name]


every_module = pytest.mark.parametrize("path", MODULES, ids=name_of)


# --- imports


@every_module
def test_module_imports_only_from_below(path: Path) -> None:
    """A module imports from lower rungs only; commands may use each other and reporters, reporters only records."""
    name, used = name_of(path), own_imports(path)
    if folder_of(name) == "reporters":
        assert {folder_of(other) for other in used} <= REPORTERS_SEE
        return
    for other in used:
        if folder_of(other) == "reporters":
            assert folder_of(name) == "commands"
        elif not folder_of(name) == folder_of(other) == "commands":
            assert rung(other) < rung(name), f"{name} imports {other}"


@every_module
def test_libraries_stay_behind_their_fences(path: Path) -> None:
    """Each library is known to the modules that are there for it, and to no other."""
    name, used = name_of(path), packages(path)
    assert "click" not in used
    assert "llama_cpp" not in used or name.startswith("backends.llama")
    assert "huggingface_hub" not in used or name == "hub"
    assert "pyarrow" not in used or name == "named_datasets"
    assert "sklearn" not in used or name == "learning"
    assert not {"math_verify", "sympy"} & used or name in ("grader", "grader_child")
    assert "typer" not in used or folder_of(name) == "commands"
    assert "rich" not in used or folder_of(name) in ("commands", "reporters")
    assert "numpy" not in used or name not in NUMPY_FREE


def test_the_guide_has_the_same_ladder() -> None:
    """CONTRIBUTING.md tells every module's rung."""
    rows = re.findall(r"^\| (\d) \| (.+) \|$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    told = {name: int(number) for number, names in rows for name in re.findall("`([^`]+)`", names)}
    assert told == {name: number for name, number in LADDER.items() if name}


def test_records_know_the_standard_library_only() -> None:
    """types.py and errors.py import nothing but the standard library."""
    for name in ("types", "errors"):
        assert packages(PACKAGE / f"{name}.py") <= sys.stdlib_module_names


def test_command_line_starts_without_the_slow_libraries() -> None:
    """Completion starts the program at each TAB: what is only needed to load a model or to draw is not imported before."""
    slow = ("llama_cpp", "rich", "jinja2", "huggingface_hub", "arbitrage_cli.backends.llama", "arbitrage_cli.reporters.live")
    code = f"import sys, arbitrage_cli.commands; print([name for name in {slow} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "[]\n"


# --- each file


@every_module
def test_module_says_what_it_does(path: Path) -> None:
    """Every module begins with a docstring."""
    assert ast.get_docstring(tree_of(path))


@every_module
def test_nothing_swallows_every_error(path: Path) -> None:
    """`except Exception` stands in the one place that shows errors; a bare or wider one only passes on what it caught."""
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = {ast.unparse(kind) for kind in ast.walk(node.type) if isinstance(kind, ast.expr)} if node.type else {"all"}
        if "Exception" in caught:
            assert name_of(path) == "commands"
        if caught & {"all", "BaseException"}:
            assert isinstance(node.body[-1], ast.Raise)
            assert node.body[-1].exc is None


def test_the_paper_fits_on_a_few_pages() -> None:
    """arbitrage.py has under 200 lines, and does no input or output."""
    path = PACKAGE / "arbitrage.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) < 200
    called = {ast.unparse(node.func) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)}
    assert not called & {"open", "print", "input"}


def test_nothing_but_what_belongs_lies_at_the_top() -> None:
    """The top level holds the files the design names, and the tools' own hidden ones."""
    wanted = {
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "pyproject.toml",
        "arbitrage_cli",
        "models",
        "tests",
    }
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    found = {name.split("/")[0] for name in tracked.stdout.splitlines()}
    assert {name for name in found if not name.startswith(".")} <= wanted


# --- the README


def readme_tree() -> dict[str, str]:
    """Path below the package and caption of each line of the README's tree; folders end in a slash."""
    block = re.search(
        r"^```\w*\narbitrage_cli/[^\n]*\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert block, "README.md has no fenced block that begins with arbitrage_cli/"
    captions: dict[str, str] = {}
    folders: list[str] = []
    for line in filter(None, block.group(1).splitlines()):
        match = re.fullmatch(r"((?:  )+)(\S+)(?: {2,}(\S.*))?", line)
        assert match, f"not an indented name and a caption: {line!r}"
        indent, name, caption = match.groups()
        depth = len(indent) // 2 - 1
        assert depth <= len(folders), f"deeper than its folder: {line!r}"
        path = "".join(folders[:depth]) + name
        assert path not in captions, f"twice: {path}"
        captions[path] = caption or ""
        folders = [*folders[:depth], name] if name.endswith("/") else folders[:depth]
    return captions


def test_readme_tree_names_every_file_and_nothing_else() -> None:
    """Each file of the package is in the README's tree, and each name in the tree is there."""
    below = [path for path in PACKAGE.rglob("*") if "__pycache__" not in path.parts and path.suffix != ".pyc"]
    there = {path.relative_to(PACKAGE).as_posix() + ("/" if path.is_dir() else "") for path in below}
    assert set(readme_tree()) == there


def test_readme_tree_has_captions() -> None:
    """Each line of the tree says what the file is for."""
    assert [path for path, caption in readme_tree().items() if not caption] == []


@pytest.mark.parametrize("name", ["run", "test"])
def test_readme_says_how_to_run_and_test(name: str) -> None:
    """The README has the commands to try the program and to test it, where tools can find them."""
    found = re.findall(rf"<!-- command: {name} -->\n+```\w*\n(.+?)\n```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 1
    assert found[0].strip()


def test_readme_mentions_only_options_that_exist() -> None:
    """Each --flag in the README is in the help of some command, or is one of a benchmark's."""
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", README.read_text(encoding="utf-8")))
    commands = typer.main.get_group(make_app()).commands
    helps = [run(*command, "--help", env={"COLUMNS": "200"}).out for command in [[], *([name] for name in commands)]]
    scripts = [path.read_text(encoding="utf-8") for path in (Path(__file__).parent / "benchmarks").glob("*.py")]
    existing = set(re.findall(r"--[a-z][a-z-]*[a-z]", " ".join(helps)))
    existing |= {flag for script in scripts for flag in re.findall(r'add_argument\("(--[a-z-]+)"', script)}
    assert mentioned
    assert mentioned - existing == set()


def readme_commands() -> set[tuple[str, str]]:
    """Each command of this program that is shown in the README, with each flag that it is given there."""
    text = re.sub(r"\\\n\s*", "", README.read_text(encoding="utf-8"))
    shown = re.findall(r"arbitrage ((?:models )?[a-z]+) ([^`|#>\n]*)", text)
    return {(command, flag) for command, rest in shown for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", rest)}


def test_readme_gives_each_command_its_own_options() -> None:
    """What is shown can be typed: no flag of one command with another."""
    found = readme_commands()
    helps = {name: run(*name.split(), "--help", env={"COLUMNS": "200"}).out for name, _ in found}
    assert {("solve", "--pair"), ("bench", "--dataset"), ("collect", "--reward")} <= found
    assert {(name, flag) for name, flag in found if not re.search(rf"{flag}\b", helps[name])} == set()


def test_readme_has_every_exit_code() -> None:
    """Each exit code that an error can have is in the README's table."""
    table = re.findall(r"^\| ([\d, ]+) \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    told = {int(code) for codes in table for code in codes.split(",")}
    used = {
        int(code) for code in re.findall(r"exit_code(?:: int)? = (\d+)", (PACKAGE / "errors.py").read_text(encoding="utf-8"))
    }
    assert used <= told


def test_readme_has_every_field_of_a_record() -> None:
    """Each field of the JSON record is in the README."""
    tree = tree_of(PACKAGE / "runs.py")
    (record,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "record")
    (made,) = (node for node in ast.walk(record) if isinstance(node, ast.Return))
    assert isinstance(made.value, ast.Dict)
    fields = {str(ast.literal_eval(key)) for key in made.value.keys if key}
    assert fields
    text = README.read_text(encoding="utf-8")
    assert {field for field in fields if f"`{field}`" not in text} == set()
