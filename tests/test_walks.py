"""CONTRIBUTING.md names the folders that a problem or a request enters, and the files to read first."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from cli import TIMEOUT, environment

ROOT = Path(__file__).parents[1]
TRACED = ROOT / "tests" / "support" / "traced.py"
EVERYWHERE = {"system", "display", "numbers", "errors", "types", "app"}  # of app/ itself, only the leaves


def documented(command: str) -> tuple[list[str], set[str], list[str]]:
    """The stations of a walk in order, the folders below them, and the files to read."""
    (walk,) = re.findall(
        rf"^- \*\*A \w+ (?:of|to) `{command}`\*\*(.*?)(?=^- |^\*\*|\Z)",
        (ROOT / "CONTRIBUTING.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    above, _, rest = walk.partition("below them")
    below, _, files = rest.partition("Read ")
    return _names(above), set(_names(below)), _names(files)


def _names(text: str) -> list[str]:
    return re.findall(r"`([\w/]+)`", text)


def walk(arguments: tuple[str, ...], folder: Path) -> list[str]:
    """The modules that a command enters, in order of first entry."""
    output = folder / "modules.json"
    command = [sys.executable, str(TRACED), str(output), *arguments]
    with subprocess.Popen(
        command, env=environment(), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        if arguments[0] == "serve":
            assert process.stdout
            url = process.stdout.readline().decode().strip()
            body = {"messages": [{"role": "user", "content": "2 + 3"}]}
            assert httpx2.post(f"{url}/chat/completions", json=body, timeout=TIMEOUT).status_code == 200
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=TIMEOUT)
    modules: list[str] = json.loads(output.read_text())
    return modules


def folder_of(module: str) -> str:
    parts = module.split("/")
    return "/".join(parts[:2]) if parts[0] == "app" and len(parts) > 2 else parts[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ("bench", "--dataset", "builtin", "--limit", "1", "--policy", "arbitrage", "-o", "run"),
        ("solve", "2 + 3"),
        ("serve", "--port", "0"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_walk_enters_the_documented_folders(arguments: tuple[str, ...], tmp_path: Path) -> None:
    stations, below, files = documented(arguments[0])
    modules = walk(arguments, tmp_path)
    folders = list(dict.fromkeys(map(folder_of, modules)))
    above = [folder for folder in folders if folder.startswith(("cli", "app/", "serving"))]
    assert above == stations
    assert set(folders) - set(above) - EVERYWHERE == below
    assert len(files) == 5
    assert set(files) <= set(modules)
