"""Files from the Hub: names, checksums, failed downloads, refusals, hostile responses and secrets."""

import json
import os
import shutil
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fake_hub
import pytest
from cli import TIMEOUT
from fake_hub import COMMIT, Failure, FakeHub
from huggingface_hub import constants, hf_hub_download, snapshot_download

from arbitrage_cli.errors import ArbitrageError, HubError, ModelFileError, UsageError
from arbitrage_cli.model_files import hub
from arbitrage_cli.model_files.checksums import FileProgress
from arbitrage_cli.model_files.hub import HubName, choose, parse_name

REPO, FILE = "user/Model-GGUF", "Model-Q4_K_M.gguf"
DATA = bytes(range(256)) * 4000 + b"the end"  # about 1 MB
NAME = HubName(REPO)
SET = "user/Set"
LARGE, SMALL = HubName(SET, "main/test.parquet", kind="dataset"), HubName(SET, "test.jsonl", kind="dataset")
TOKEN = "hf_SENTINEL0123456789"  # noqa: S105 - no real one


UNNAMED = HubName("user/repo")
PATHS = ("model", "model.gguf", "a/small.gguf", "./a/b", "../a/b", "~/a", "/a/b", "a/b/c", "a\\b/c", "a/..", "a/b--c", "")
LEADING_OUT = (
    *("u/r:../../x.gguf", "u/r:/etc/x.gguf", "u/r:a/../x.gguf", "u/r:a\\x.gguf", "u/r:a\x1b[2J.gguf", "u/r@../../x"),
    *("u/r:*", "u/r:latest"),
)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub.running() as served:
        served.repos[REPO] = {"README.md": b"# hello", FILE: DATA, "Model-Q8_0.gguf": DATA[:1000]}
        served.repos[f"datasets/{SET}"] = {"README.md": b"# rows", LARGE.selector: DATA, SMALL.selector: DATA[:5000]}
        served.in_git = {SMALL.selector}
        fake_hub.use(served, monkeypatch, tmp_path)
        yield served


def cached_files() -> list[str]:
    return sorted(path.name for path in Path(constants.HF_HUB_CACHE).glob("*--*/blobs/*"))


def test_second_use_makes_no_request(served: FakeHub) -> None:
    first = hub.find(NAME)
    served.requests.clear()
    seen: list[FileProgress] = []
    assert hub.find(NAME, on_progress=seen.append) == first
    assert (served.requests, seen) == ([], [])
    os.utime(first[0], ns=(0, 0))
    assert hub.find(NAME, on_progress=seen.append) == first
    assert seen[-1] == FileProgress("checking", FILE, len(DATA), len(DATA))


@pytest.mark.parametrize("name", [NAME, LARGE, SMALL], ids=["model", "large", "small"])
def test_cache_is_shared_with_all_programs(served: FakeHub, name: HubName) -> None:
    file = FILE if name == NAME else name.selector
    (path,) = hub.find(name)
    assert path.read_bytes() == DATA[: path.stat().st_size]
    assert hf_hub_download(name.repo, file, repo_type=name.kind, local_files_only=True) == str(path)
    assert Path(snapshot_download(name.repo, repo_type=name.kind, local_files_only=True)) in path.parents
    served.requests.clear()
    assert hub.find(name, offline=True) == hub.locate(name) == (path,)
    assert hub.locate(HubName(SET)) == ()
    assert not served.requests


def test_split_model(served: FakeHub) -> None:
    served.repos[REPO] = {f"M-Q4_K_M-0000{number}-of-00003.gguf": DATA[number:] for number in (2, 1, 3)}
    paths = hub.fetch(NAME)
    assert [path.name for path in paths] == sorted(served.repos[REPO])
    assert hub.locate(NAME) == paths
    paths[1].unlink()
    assert hub.locate(NAME) == ()
    assert hub.find(NAME) == paths


@pytest.mark.parametrize(("name", "command"), [(NAME, f"models pull {NAME}"), (SMALL, "the same command")])
def test_offline(served: FakeHub, name: HubName, command: str) -> None:
    hub.fetch(LARGE)
    served.requests.clear()
    assert hub.fetch(LARGE, offline=True) == hub.find(LARGE, offline=True)
    with pytest.raises(HubError, match="not on this machine") as caught:
        hub.find(name, offline=True)
    assert command in caught.value.hint
    assert not served.requests


def test_fetch_looks_for_a_newer_version(served: FakeHub) -> None:
    (old,) = hub.find(LARGE)
    served.push()
    assert hub.find(LARGE) == (old,)
    (new,) = hub.fetch(LARGE)
    assert (hub.commit_of(LARGE, old), hub.commit_of(LARGE, new)) == (COMMIT, served.sha)
    assert hub.find(LARGE) == (new,)


@pytest.mark.parametrize("name", [NAME, LARGE], ids=["model", "large"])
def test_wrong_bytes(served: FakeHub, name: HubName) -> None:
    served.corrupt = True
    with pytest.raises(ModelFileError, match="sha256"):
        hub.fetch(name)
    assert (cached_files(), hub.locate(name)) == ([], ())
    served.corrupt = False
    assert hub.fetch(name)[0].read_bytes()[0] == DATA[0]


@pytest.mark.parametrize("name", [NAME, LARGE], ids=["model", "large"])
def test_file_of_another_program(served: FakeHub, name: HubName) -> None:
    file = FILE if name == NAME else name.selector
    path = Path(hf_hub_download(name.repo, file, repo_type=name.kind))
    served.requests.clear()
    assert hub.find(name) == (path,)
    assert not served.requests
    path.resolve().write_bytes(b"!" + path.read_bytes()[1:])
    with pytest.raises(ModelFileError, match="removed"):
        hub.find(name)
    assert (cached_files(), hub.locate(name)) == ([], ())


def test_no_published_checksum(served: FakeHub) -> None:
    served.in_git = {FILE}
    with pytest.raises(HubError, match="publishes no sha256"):
        hub.fetch(NAME)
    assert not served.downloads()
    hf_hub_download(REPO, FILE)
    with pytest.raises(ModelFileError, match="unknown"):
        hub.find(NAME)


@pytest.mark.parametrize("place", ["snapshot", "folder", "blob"])
def test_wrong_checksum_removes_nothing_outside_the_cache(served: FakeHub, tmp_path: Path, place: str) -> None:
    """A link in the cache may lead to a user's own file: only the link is removed."""
    (path,) = hub.fetch(NAME)
    mine = tmp_path / "mine" / path.name
    mine.parent.mkdir()
    mine.write_bytes(DATA[:-1] + b"!")
    if place == "folder":
        shutil.rmtree(path.parent)
        path.parent.symlink_to(mine.parent)
    else:
        link = path if place == "snapshot" else path.resolve()
        link.unlink()
        link.symlink_to(mine)
    with pytest.raises(ModelFileError):
        hub.find(NAME)
    assert mine.read_bytes() == DATA[:-1] + b"!"


@pytest.mark.parametrize(("name", "size"), [(NAME, len(DATA)), (SMALL, 5000)], ids=["model", "small"])
def test_broken_connection(served: FakeHub, monkeypatch: pytest.MonkeyPatch, name: HubName, size: int) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    served.cuts = [size // 2]
    seen: list[FileProgress] = []
    (path,) = hub.fetch(name, on_progress=seen.append)
    assert path.read_bytes() == DATA[:size]
    assert [request.range for request in served.downloads()] == [None, f"bytes={size // 2 // 1000 * 1000}-"]
    downloading = [progress.done for progress in seen if progress.activity == "downloading"]
    assert (downloading[0], downloading[-1], downloading == sorted(downloading)) == (0, size, True)


def test_connection_that_always_breaks(served: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    served.cuts = [0] * 20
    with pytest.raises(HubError, match="cannot be downloaded"):
        hub.fetch(NAME)
    assert len(served.downloads()) < 10


def test_full_disk(served: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(HubError, match="free disk space"):
        hub.fetch(NAME)
    assert not served.downloads()


def test_two_at_once(served: FakeHub) -> None:
    served.gate, waits = threading.Event(), threading.Event()
    results: list[tuple[Path, ...]] = []
    first = threading.Thread(target=lambda: results.append(hub.fetch(NAME)))
    second = threading.Thread(target=lambda: results.append(hub.fetch(NAME, on_progress=lambda progress: waits.set())))
    first.start()
    assert served.is_halfway.wait(TIMEOUT)
    second.start()
    assert waits.wait(TIMEOUT)
    served.gate.set()
    first.join(TIMEOUT)
    second.join(TIMEOUT)
    assert len(results) == 2
    assert results[0] == results[1]
    assert results[0][0].read_bytes() == DATA
    assert len(served.downloads()) == 1


REFUSALS = {
    "gated": (Failure(403, {"X-Error-Code": "GatedRepo"}), "HTTP 403", "https://huggingface.co/datasets/user/Set;"),
    "bad request": (Failure(400), "HTTP 400", "later"),
    "unauthorized": (Failure(401), "HTTP 401", "hf auth login"),
    "missing": (Failure(404, {"X-Error-Code": "RepoNotFound"}), "HTTP 404", "check the name"),
    "too many": (Failure(429, {"Retry-After": "37"}), "HTTP 429", "37 seconds"),
    "broken": (Failure(503), "HTTP 503", "later"),
    "file forbidden": (Failure(403, path="/resolve/"), "HTTP 403", "hf auth login"),
    "file missing": (Failure(404, {"X-Error-Code": "EntryNotFound"}, path="/resolve/"), "HTTP 404", "check the name"),
    "file without commit": (Failure(200, path="/resolve/"), "X-Repo-Commit", "check the name"),
    "no hub": (Failure(200, body="<html>Welcome to the hotel's WiFi</html>"), "not from a Hub server", "HF_ENDPOINT"),
    "other json": (Failure(200, body='{"a": 1}'), "not from a Hub server", "HF_ENDPOINT"),
    "nested json": (Failure(200, body="[" * 100_000), "not from a Hub server", "HF_ENDPOINT"),
    "long number": (Failure(200, body="9" * 5000), "not from a Hub server", "HF_ENDPOINT"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_refusals(served: FakeHub, kind: str) -> None:
    served.failure, message, hint = REFUSALS[kind]
    with pytest.raises(HubError) as caught:
        hub.fetch(SMALL)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("kind", [*REFUSALS, "echo", "echo of a file", "wrong bytes", "cut", "nothing wrong"])
def test_token_stays_secret(
    served: FakeHub, kind: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    echo = Failure(403, {"X-Error-Message": f"Bearer {TOKEN}"}, json.dumps({"error": f"no access for {TOKEN}"}))
    echoes = {"echo": echo, "echo of a file": Failure(403, echo.headers, echo.body, "/resolve/")}
    served.failure = REFUSALS[kind][0] if kind in REFUSALS else echoes.get(kind)
    served.corrupt, served.cuts = kind == "wrong bytes", [0] * 20 if kind == "cut" else []
    shown = ""
    try:
        hub.fetch(NAME)
    except ArbitrageError as error:
        shown = "".join(traceback.format_exception(error)) + error.message + error.hint
    assert (kind == "nothing wrong") == (not shown)
    assert TOKEN not in shown + "".join(capfd.readouterr())
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert {request.authorization for request in served.requests if request.host == "api"} == {f"Bearer {TOKEN}"}
    assert {request.authorization for request in served.downloads()} <= {None}


@pytest.mark.parametrize("token", [TOKEN, "", None])
def test_token_over_http(served: FakeHub, monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match="over http" if token else r"cannot be downloaded from hub\.invalid"):
        hub.fetch(NAME)
    assert not served.requests


def test_cache_that_is_a_circle_of_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "loop"))
    assert hub.locate(NAME) == ()


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:99999", "localhost:8080"])
def test_malformed_endpoint(endpoint: str, tmp_path: Path) -> None:
    """huggingface_hub reads HF_ENDPOINT when it is imported, hence the other process."""
    code = (
        "from arbitrage_cli.errors import HubError; from arbitrage_cli.model_files import hub\n"
        "try: hub.fetch(hub.HubName('user/repo'))\n"
        "except HubError as error: print(error.message)"
    )
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert "HF_ENDPOINT" in done.stdout, done.stderr
    assert TOKEN not in done.stdout + done.stderr


# --- names


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("user/repo", HubName("user/repo", "Q4_K_M", "main")),
        ("user/repo:q8_0", HubName("user/repo", "q8_0", "main")),
        ("user/repo@v1.0", HubName("user/repo", "Q4_K_M", "v1.0")),
        ("user/repo:IQ3_XS@refs/pr/1", HubName("user/repo", "IQ3_XS", "refs/pr/1")),
        ("user/repo:UD-Q4_K_XL", HubName("user/repo", "UD-Q4_K_XL", "main")),
        ("u-s/re.po_1:sub/file.gguf@main", HubName("u-s/re.po_1", "sub/file.gguf", "main")),
    ],
)
def test_names(source: str, name: HubName) -> None:
    assert parse_name(source) == name


def test_what_is_no_name() -> None:
    assert {parse_name(source) for source in PATHS} == {None}
    for source in LEADING_OUT:
        with pytest.raises(UsageError):
            parse_name(source)


Q4, Q8 = "Model-Q4_K_M.gguf", "Model-Q8_0.gguf"
PARTS = tuple(f"M-Q4_K_M-0000{number}-of-00003.gguf" for number in (1, 2, 3))
SPELT = ("model.Q5_K_S.gguf", "sub/q5_k_s.gguf", "Q5_K_S/a-b_q5_k_s.gguf")


@pytest.mark.parametrize(
    ("selector", "files", "chosen"),
    [
        *((selector, (Q4, Q8), (Q4,)) for selector in ("q4_k_m", "Q4_K_M", Q4)),
        *(("Q5_K_S", (file, "mmproj-q5_k_s.gguf", "model-IQ5_K_S.gguf"), (file,)) for file in SPELT),
        *((selector, PARTS[::-1], PARTS) for selector in ("Q4_K_M", PARTS[1])),
    ],
)
def test_choice_of_files(selector: str, files: tuple[str, ...], chosen: tuple[str, ...]) -> None:
    assert choose(HubName("user/repo", selector), files) == chosen


@pytest.mark.parametrize(
    ("name", "files", "message", "hint"),
    [
        (HubName("user/repo", "Q2_K"), ["M-Q4_K_M.gguf", "M-Q8_0.gguf"], "has no Q2_K", "M-Q4_K_M.gguf, M-Q8_0.gguf"),
        (UNNAMED, ["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], "a-Q4_K_M.gguf, b-Q4_K_M.gguf", "user/repo:a-Q4_K_M.gguf"),
        (UNNAMED, [], "has no Q4_K_M", "-GGUF"),
        (UNNAMED, ["M-Q4_K_M-00001-of-00002.gguf"], "lacks parts", "another quantization"),
        (UNNAMED, ["../../../evil-Q4_K_M.gguf"], "unsafe", "inside the repository"),
        (UNNAMED, ["a\\..\\evil-Q4_K_M.gguf"], "unsafe", "inside the repository"),
        (UNNAMED, ["C:/evil-Q4_K_M.gguf"], "unsafe", "inside the repository"),
        (SMALL, ["other.jsonl"], "has no test.jsonl", "other.jsonl"),
    ],
)
def test_no_single_safe_choice(name: HubName, files: list[str], message: str, hint: str) -> None:
    with pytest.raises(HubError) as caught:
        choose(name, files)
    assert message in caught.value.message
    assert hint in caught.value.hint
