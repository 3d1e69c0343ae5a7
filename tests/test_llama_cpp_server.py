"""The built-in target behind a server of llama.cpp, over a real connection, writes what it writes here.

The server is llama-cpp-python's, and llama-server if ARBITRAGE_TEST_LLAMA_SERVER contains its path.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx2
import pytest
from cli import pair_named_mine, run
from marks import rarely
from processes import awaited

from arbitrage_cli.inference.llama import library_selected

MODELS = Path(__file__).parents[1] / "models"
LLAMA_SERVER = "ARBITRAGE_TEST_LLAMA_SERVER"


def command_of(server: str, port: int) -> list[str]:
    model = str(MODELS / "target.gguf")
    if server == "llama-server":
        options = {"-m": model, "--host": "127.0.0.1", "--port": port, "-c": 512, "-np": 1, "-t": 1, "-tb": 1}
        return [os.environ[LLAMA_SERVER], "--no-webui", *(str(word) for option in options.items() for word in option)]
    options = {"model": model, "port": port, "n_ctx": 512, "n_threads": 1, "logits_all": "true"}
    return [sys.executable, "-m", "llama_cpp.server", *(f"--{name}={value}" for name, value in options.items())]


@pytest.fixture(scope="module", params=["llama-cpp-python", "llama-server"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of the server, in a process of its own."""
    if request.param == "llama-server" and LLAMA_SERVER not in os.environ:
        pytest.skip(f"needs the path of llama-server in {LLAMA_SERVER}")
    for _ in range(5):  # another process may take the port first
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        base, null = f"http://127.0.0.1:{port}/v1", subprocess.DEVNULL
        with library_selected():  # llama-cpp-python may have been installed without its own library
            started = subprocess.Popen(command_of(request.param, port), stdout=null, stderr=null)
        with started as process:
            try:
                awaited(lambda: process.poll() or _answers(base))  # noqa: B023 - called at once
                if process.poll() is None:
                    yield base
                    return
            finally:
                process.kill()
    pytest.fail("the server ends")


def _answers(base: str) -> bool:
    try:
        return httpx2.get(f"{base}/models", timeout=1).is_success
    except httpx2.TransportError:
        return False


def records(*arguments: str, problems: Path, env: Mapping[str, str | None]) -> list[dict[str, object]]:
    result = run("solve", "--system", "", "--input", str(problems), *arguments, env={"ARBITRAGE_KV_TYPE": "f16", **env})
    assert result.code == 0, result.err
    return result.records


@pytest.mark.parametrize("policy", ["target", *rarely("logprob")])
def test_a_served_target_gives_the_local_solutions(
    address: str, policy: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Over a builtin draft; texts may differ only at near ties, which these problems do not have."""
    if policy == "logprob" and "llama-cpp-python" in request.node.name:
        pytest.skip("a chat API routes no steps")
    lines = (MODELS / "builtin-dev.jsonl").read_text().splitlines()[:6]
    problems = tmp_path / "problems.txt"
    problems.write_text("".join(f"{json.loads(line)['problem']}\n" for line in lines))
    common = ("--pair", "mine", "--policy", policy, *(() if policy == "target" else ("--tau", "0.01")))
    env = pair_named_mine(tmp_path, draft="builtin:draft", target="builtin:target")
    here = records(*common, problems=problems, env=env)
    pair_named_mine(tmp_path, draft="builtin:draft", target=address)
    there = records(*common, problems=problems, env=env)
    assert [record["text"] for record in there] == [record["text"] for record in here]
    assert [record["acceptance_rate"] for record in there] == [record["acceptance_rate"] for record in here]
