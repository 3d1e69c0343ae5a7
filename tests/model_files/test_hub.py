"""Files from the Hub: names, checksums, refusals, hostile responses and secrets."""

import contextlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import fake_hub
import pytest
from fake_hub import COMMIT, Failure, FakeHub
from huggingface_hub import constants, get_session, hf_hub_download
from huggingface_hub.utils.logging import get_verbosity

from arbitrage_cli.errors import ArbitrageError, HubError, ModelFileError, UsageError
from arbitrage_cli.model_files import hub
from arbitrage_cli.model_files.checksums import FileProgress, sha256_seen
from arbitrage_cli.model_files.hub import HubName, PublishedFile, choose, parse_name

REPO, FILE = "user/Model-GGUF", "Model-Q4_K_M.gguf"
DATA = bytes(range(256)) * 4000 + b"the end"  # about 1 MB
NAME, UNNAMED = HubName(REPO), HubName("user/repo")
SET = "user/Set"
LARGE, SMALL = HubName(SET, "main/test.parquet", kind="dataset"), HubName(SET, "test.jsonl", kind="dataset")
TOKEN = "hf_SENTINEL0123456789"  # noqa: S105 - no real one


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub.running() as served:
        served.repos[REPO] = {"README.md": b"# hello", FILE: DATA, "Model-Q8_0.gguf": DATA[:1000]}
        served.repos[f"datasets/{SET}"] = {"README.md": b"# rows", LARGE.selector: DATA, SMALL.selector: DATA[:5000]}
        served.in_git = {SMALL.selector}
        fake_hub.use(served, monkeypatch, tmp_path)
        yield served


def cached_files() -> list[Path]:
    return [*Path(constants.HF_HUB_CACHE).glob("*--*/blobs/*")]


def test_second_use_makes_no_request(served: FakeHub) -> None:
    seen: list[FileProgress] = []
    first = hub.find(NAME, on_progress=seen.append)
    ends = [FileProgress(activity, FILE, len(DATA), len(DATA)) for activity in ("downloading", "checking")]
    assert (seen[0], [one for one in seen if one in ends]) == (FileProgress("downloading", FILE, 0, len(DATA)), ends)
    served.requests.clear()
    seen.clear()
    assert hub.find(NAME, on_progress=seen.append) == first
    assert (served.requests, seen) == ([], [])
    os.utime(first[0], ns=(0, 0))
    assert hub.find(NAME, on_progress=seen.append) == first
    assert seen == ends[1:]


@pytest.mark.parametrize("name", [NAME, LARGE, SMALL], ids=["model", "large", "small"])
def test_cache_is_shared_with_all_programs(served: FakeHub, name: HubName) -> None:
    """A file of another program is checked, too. Only the sha256 of small files is not published."""
    file = FILE if name == NAME else name.selector
    path = Path(hf_hub_download(name.repo, file, repo_type=name.kind))
    served.requests.clear()
    assert hub.find(name) == hub.find(name, offline=True) == hub.locate(name) == (path,)
    assert hub.locate(HubName(SET)) == ()
    assert not served.requests
    path.resolve().write_bytes(b"!" + path.read_bytes()[1:])
    if name == SMALL:
        assert hub.find(name) == (path,)
        return
    for check in (lambda: sha256_seen([path]), lambda: hub.find(name)):
        with pytest.raises(ModelFileError, match="sha256"):
            check()
    assert (cached_files(), hub.locate(name)) == ([], ())
    assert hub.fetch(name)[0].read_bytes() == DATA


def test_interrupted_download_leaves_no_file(served: FakeHub) -> None:
    def interrupt(progress: FileProgress) -> None:
        if progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.fetch(NAME, on_progress=interrupt)
    assert hub.locate(NAME) == ()
    assert hub.fetch(NAME)[0].read_bytes() == DATA


def test_split_model(served: FakeHub) -> None:
    served.repos[REPO] = {f"M-Q4_K_M-0000{number}-of-00003.gguf": DATA[number:] for number in (2, 1, 3)}
    paths = hub.fetch(NAME)
    assert [path.name for path in paths] == sorted(served.repos[REPO])
    assert hub.locate(NAME) == paths
    paths[1].unlink()
    assert hub.locate(NAME) == ()
    assert hub.find(NAME) == paths


def test_fetch_looks_for_a_newer_version(served: FakeHub) -> None:
    (old,) = hub.find(LARGE)
    served.push()
    assert hub.find(LARGE) == hub.fetch(LARGE, offline=True) == (old,)
    (new,) = hub.fetch(LARGE)
    assert (hub.commit_of(LARGE, old), hub.commit_of(LARGE, new)) == (COMMIT, served.sha)
    assert hub.find(LARGE) == (new,)
    with pytest.raises(HubError, match="not on this machine") as caught:
        hub.find(SMALL, offline=True)
    assert "the same command" in caught.value.hint


def test_wrong_checksum_removes_nothing_outside_the_cache(served: FakeHub, tmp_path: Path) -> None:
    """A link in the cache may lead to a user's own file: only the link is removed."""
    blob = hub.fetch(NAME)[0].resolve()
    blob.unlink()
    blob.symlink_to(tmp_path / "mine")
    (tmp_path / "mine").write_bytes(b"!")
    with pytest.raises(ModelFileError):
        hub.find(NAME)
    assert (tmp_path / "mine").read_bytes() == b"!"


def test_full_disk(served: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(HubError, match="free disk space"):
        hub.fetch(NAME)
    assert not served.downloads()


@pytest.mark.parametrize("file", ["../../../evil", "a\\..\\evil", "C:/evil"])
def test_file_name_that_leads_out_of_the_repository(served: FakeHub, file: str) -> None:
    served.repos[REPO] = {f"{file}-Q4_K_M.gguf": DATA}
    with pytest.raises(HubError):
        hub.fetch(NAME)
    assert (served.downloads(), cached_files()) == ([], [])


def test_header_of_a_mirror_that_leads_out_of_the_cache(served: FakeHub, tmp_path: Path) -> None:
    for name in ("ETag", "X-Linked-ETag", "X-Repo-Commit"):
        served.headers = {name: f'"{tmp_path}/evil"'}
        with pytest.raises(HubError):
            hub.fetch(NAME)
    assert not list(tmp_path.glob("evil*"))


REFUSALS = {
    "gated": (Failure(403, {"X-Error-Code": "GatedRepo"}), "HTTP 403", "https://huggingface.co/datasets/user/Set;"),
    "unauthorized": (Failure(401), "HTTP 401", "hf auth login"),
    "too many": (Failure(429, {"Retry-After": "37"}), "HTTP 429", "37 seconds"),
    "broken": (Failure(503), "HTTP 503", "later"),
    "file missing": (Failure(404, {"X-Error-Code": "EntryNotFound"}, path="/resolve/"), "HTTP 404", "check the name"),
    "file without commit": (Failure(200, path="/resolve/"), "X-Repo-Commit", "check the name"),
    "no hub": (Failure(200, body="<html>Welcome to the hotel's WiFi</html>"), "not from a Hub server", "HF_ENDPOINT"),
    "other json": (Failure(200, body='{"a": 1}'), "not from a Hub server", "HF_ENDPOINT"),
    "nested json": (Failure(200, body="[" * 100_000), "not from a Hub server", "HF_ENDPOINT"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_refusals(served: FakeHub, kind: str) -> None:
    served.failure, message, hint = REFUSALS[kind]
    with pytest.raises(HubError) as caught:
        hub.fetch(SMALL)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("kind", [*REFUSALS, "echo", "echo of a file", "wrong bytes"])
def test_token_stays_secret(
    served: FakeHub, kind: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    echo, text = {"X-Error-Message": f"Bearer {TOKEN}"}, json.dumps({"error": f"no access for {TOKEN}"})
    echoes = {"echo": Failure(403, echo, text), "echo of a file": Failure(403, echo, text, "/resolve/")}
    served.failure, served.corrupt = REFUSALS[kind][0] if kind in REFUSALS else echoes.get(kind), kind == "wrong bytes"
    with pytest.raises(ArbitrageError) as caught:
        hub.fetch(NAME)
    shown = "".join(traceback.format_exception(caught.value)) + caught.value.message + caught.value.hint
    assert TOKEN not in shown + "".join(capfd.readouterr())
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert {request.authorization for request in served.requests} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("place", ["HF_TOKEN", "the file of `hf auth login`"])
def test_token_is_not_sent_unencrypted(served: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str) -> None:
    """The Hub on loopback is the proxy, so it would see the requests."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, served.url)
    if place == "HF_TOKEN":
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    else:
        (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    for ask in (hub.fetch, hub.preview):
        with pytest.raises(HubError, match="HF_ENDPOINT"):
            ask(NAME)
    assert {request.authorization for request in served.requests} <= {None}  # the library may ask for things of its own
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)  # then the library sends no token
    with contextlib.suppress(HubError):
        hub.fetch(NAME)
    assert {request.authorization for request in served.requests} == {None}


def test_token_is_sent_over_https_through_a_proxy(served: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("https_proxy", served.url)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    with pytest.raises(HubError) as caught:  # the proxy of this test makes no tunnels
        hub.fetch(NAME)
    assert "unencrypted" not in caught.value.message
    assert {*served.tunnels} == {"hub.invalid:443"}  # the library may also ask for things of its own


def test_library_is_left_as_the_host_program_set_it(served: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def own(response: object) -> None:
        pass

    session, verbosity = get_session(), get_verbosity()
    monkeypatch.setitem(session.event_hooks, "response", [own])
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    hub.fetch(NAME)
    served.failure = Failure(503)
    with pytest.raises(HubError):
        hub.fetch(NAME)
    assert session.event_hooks["response"] == [own]
    assert (constants.HF_HUB_DISABLE_TELEMETRY, get_verbosity()) == (False, verbosity)


def test_file_without_a_published_checksum_is_noted(served: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    hub.fetch(LARGE)
    assert not caplog.messages
    hub.fetch(SMALL)
    (note,) = caplog.messages
    assert SMALL.selector in note


@pytest.mark.parametrize("folder", ["", "Q4_K_M/"])
def test_preview_downloads_nothing(served: FakeHub, folder: str) -> None:
    served.repos[REPO] = {f"{folder}M-Q4_K_M-0000{number}-of-00002.gguf": DATA[number:] for number in (1, 2)}
    first, second = (PublishedFile(name, len(data), is_here=False) for name, data in served.repos[REPO].items())
    assert hub.preview(NAME) == [first, second]
    assert not served.downloads()
    hub.fetch(NAME)
    here = [replace(file, is_here=True) for file in (first, second)]
    assert hub.preview(NAME) == hub.preview(NAME, offline=True) == here


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
    paths = ("model", "a/small.gguf", "./a/b", "~/a", "/a/b", "a/b/c", "a\\b/c", "a/..", "a/b--c", "")
    assert {parse_name(source) for source in paths} == {None}
    for source in ("u/r@../../x", "u/r:*", "u/r:latest"):
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
        ("F16", ("M-F16.gguf", "M-mmproj-F16.gguf"), ("M-F16.gguf",)),
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
        (SMALL, ["other.jsonl"], "has no test.jsonl", "other.jsonl"),
    ],
)
def test_no_single_choice(name: HubName, files: list[str], message: str, hint: str) -> None:
    with pytest.raises(HubError) as caught:
        choose(name, files)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:99999", "localhost:8080"])
def test_malformed_endpoint(endpoint: str, tmp_path: Path) -> None:
    """huggingface_hub reads HF_ENDPOINT when it is imported, hence the other process."""
    code = (
        "from arbitrage_cli.errors import HubError; from arbitrage_cli.model_files import hub\n"
        "try: hub.fetch(hub.HubName('user/repo'))\n"
        "except HubError as error: print(error.message, error.hint)"
    )
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert "HF_ENDPOINT" in done.stdout, done.stderr
    assert TOKEN not in done.stdout + done.stderr
