"""Clients as PyPI has them, each in an environment of its own, against `arbitrage serve` with the built-in pair.

ARBITRAGE_TEST_CLIENTS names a folder with the environments: `python -m venv FOLDER/NAME`, then `FOLDER/NAME/bin/pip install`
of openai, llm, inspect_ai (with openai), lm_eval[api] or litellm[proxy]. A client whose environment is missing is skipped.
"""

import json
import os
import re
import secrets
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cli import TIMEOUT, environment, served
from processes import awaited

pytestmark = pytest.mark.slow
CLIENTS = Path(os.environ.get("ARBITRAGE_TEST_CLIENTS", "/nonexistent"))
SUMS = [(f"What is {n} + {2 * n}?", str(3 * n)) for n in range(11, 21)]
MOST_WRONG = 3  # of ten sums; the built-in pair makes mistakes


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served("--threads", "1", models=("--pair", "builtin")) as (_, client):
        yield str(client.base_url).rstrip("/")


def program(client: str, name: str) -> str:
    path = CLIENTS / client / "bin" / name
    if not path.exists():
        pytest.skip(f"{path} is missing")
    return str(path)


def output(*command: str, cwd: Path, **variables: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment({"HOME": str(cwd), **variables}),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


OPENAI = """
import json, sys
from openai import BadRequestError, OpenAI

client = OpenAI(base_url=sys.argv[1], api_key="none")
def ask(**options):
    question = {"role": "user", "content": "What is 23 * 47 - 88?"}
    return client.chat.completions.create(**{"model": "arbitrage", "messages": [question], **options})

whole, limited, stopped = ask(), ask(max_completion_tokens=5), ask(stop="47")
chunks = list(ask(stream=True, stream_options={"include_usage": True}))
try:
    ask(n=2)
    refused = None
except BadRequestError as error:
    refused = error.param
print(json.dumps({
    "models": [model.id for model in client.models.list()],
    "text": whole.choices[0].message.content,
    "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
    "usage": [whole.usage.completion_tokens, chunks[-1].usage.completion_tokens, limited.usage.completion_tokens],
    "reasons": [answer.choices[0].finish_reason for answer in (whole, limited, stopped)],
    "stopped": stopped.choices[0].message.content,
    "refused": refused,
}))
"""


def test_the_openai_library(url: str, tmp_path: Path) -> None:
    found = json.loads(output(program("openai", "python"), "-c", OPENAI, url, cwd=tmp_path))
    assert {"arbitrage", "arbitrage@fast", "target"} < set(found["models"])
    assert found["streamed"] == found["text"]
    assert "993" in found["text"]
    assert found["usage"][0] == found["usage"][1] > found["usage"][2] == 5
    assert found["reasons"] == ["stop", "length", "stop"]
    assert found["text"].startswith(found["stopped"])
    assert "47" not in found["stopped"]
    assert found["refused"] == "n"


@pytest.mark.parametrize("streams", [True, False])
def test_llm(url: str, tmp_path: Path, streams: bool) -> None:
    model = {"model_id": "arbitrage", "model_name": "arbitrage", "api_base": url}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))  # JSON is YAML
    flags = [] if streams else ["--no-stream"]
    command = [program("llm", "llm"), "-m", "arbitrage", *flags, "What is 23 * 47 - 88?"]
    assert "993" in output(*command, cwd=tmp_path, LLM_USER_PATH=str(tmp_path))


INSPECT = """
import json, sys
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes

samples = [Sample(input=question, target=answer) for question, answer in json.loads(sys.argv[1])]
(log,) = eval(Task(dataset=samples, scorer=includes()), model="openai-api/local/arbitrage", display="none", temperature=0.0)
scores = [sample.scores["includes"].value for sample in log.samples or []]
print("\\n" + json.dumps({"status": log.status, "scores": scores}))
"""


def test_inspect_ai(url: str, tmp_path: Path) -> None:
    command = [program("inspect_ai", "python"), "-c", INSPECT, json.dumps(SUMS)]
    shown = output(*command, cwd=tmp_path, LOCAL_BASE_URL=url, LOCAL_API_KEY="none")
    found = json.loads(shown.splitlines()[-1])
    assert found["status"] == "success"
    assert found["scores"].count("C") >= len(SUMS) - MOST_WRONG


def test_lm_eval(url: str, tmp_path: Path) -> None:
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in SUMS]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines))
    task: dict[str, Any] = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "sums.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["Question:"], "max_gen_toks": 128},
        "filter_list": [
            {
                "name": "last",
                "filter": [{"function": "regex", "regex_pattern": r"boxed\{(\d+)\}"}, {"function": "take_first"}],
            }
        ],
        "metric_list": [{"metric": "exact_match"}],
    }
    (tmp_path / "sums.yaml").write_text(json.dumps(task))
    model = f"model=arbitrage,base_url={url}/chat/completions,num_concurrent=2"
    output(
        *(program("lm_eval", "lm_eval"), "--model", "local-chat-completions", "--model_args", model, "--tasks", "sums"),
        *("--include_path", str(tmp_path), "--apply_chat_template", "--output_path", str(tmp_path / "out")),
        cwd=tmp_path,
        HF_HUB_OFFLINE="1",
    )
    (results,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(results.read_text())["results"]["sums"]["exact_match,last"] >= 1 - MOST_WRONG / len(SUMS)


def test_litellm_as_a_proxy(url: str, tmp_path: Path) -> None:
    litellm = program("litellm", "litellm")
    model = {"model_name": "arbitrage", "litellm_params": {"model": "openai/arbitrage", "api_base": url, "api_key": "none"}}
    (tmp_path / "litellm.yaml").write_text(json.dumps({"model_list": [model]}))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    key = f"sk-{secrets.token_hex(32)}"
    settings = {"HOME": str(tmp_path), "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": key}
    command = [litellm, "--config", "litellm.yaml", "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, cwd=tmp_path, env=environment(settings), stdout=log, stderr=log) as process,
        httpx2.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT, headers={"Authorization": f"Bearer {key}"}
        ) as client,
    ):
        try:
            awaited(lambda: process.poll() is not None or is_up(client))
            body = {"model": "arbitrage", "messages": [{"role": "user", "content": "What is 23 * 47 - 88?"}]}
            whole = client.post("/v1/chat/completions", json=body).json()
            assert "993" in whole["choices"][0]["message"]["content"], (tmp_path / "log").read_text()[-4000:]
            streamed = client.post("/v1/chat/completions", json={**body, "stream": True}).text
            parts = [
                json.loads(line)["choices"][0]["delta"].get("content")
                for line in re.findall(r"^data: (\{.+\})$", streamed, re.MULTILINE)
            ]
            assert "".join(filter(None, parts)) == whole["choices"][0]["message"]["content"]
        finally:
            process.kill()


def is_up(client: httpx2.Client) -> bool:
    try:
        return client.get("/health/liveliness").status_code == 200
    except httpx2.TransportError:
        return False
