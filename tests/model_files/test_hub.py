"""Getting models from the Hub: names, quantizations, checksums, broken downloads, refusals, and what must never leak."""

import hashlib
import json
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fake_hub
import pytest
from fake_hub import COMMIT, Failure, FakeHub
from huggingface_hub import constants, hf_hub_download, snapshot_download

from arbitrage_cli.errors import ArbitrageError, HubError, ModelFileError, UsageError
from arbitrage_cli.model_files import hub
from arbitrage_cli.model_files.hub import Progress
from arbitrage_cli.model_files.names import HubName, parse_name

REPO = "user/Model-GGUF"
DATA = bytes(range(256)) * 4000 + b"the end"  # about 1 MB
NAME = HubName(REPO)
SET = "user/Set"
LARGE, SMALL = HubName(SET, "main/test.parquet", kind="dataset"), HubName(SET, "test.jsonl", kind="dataset")
TOKEN = "hf_SENTINEL0123456789"  # noqa: S105 - no real one


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A fake Hub with one model, an empty cache, no token, no proxy."""
    with fake_hub.running() as served:
        served.repos[REPO] = {"README.md": b"# hello", "Model-Q4_K_M.gguf": DATA, "Model-Q8_0.gguf": DATA[:1000]}
        served.repos[f"datasets/{SET}"] = {"README.md": b"# rows", LARGE.wanted: DATA, SMALL.wanted: DATA[:5000]}
        served.in_git = {SMALL.wanted}
        fake_hub.use(served, monkeypatch, tmp_path)
        yield served


def cached_files() -> list[str]:
    """Names of everything in the cache that is a whole or a partial file."""
    blobs = Path(constants.HF_HUB_CACHE).glob("*--*/blobs/*")
    return sorted(path.name for path in blobs)


def never(seconds: float) -> None:
    raise AssertionError("waited where it should not have")


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
def test_names_of_the_hub(source: str, name: HubName) -> None:
    """A repository, with a quantization or a file and a revision where they are given."""
    assert parse_name(source) == name


@pytest.mark.parametrize(
    "source",
    [
        "model",
        "model.gguf",
        "models/small.gguf",
        "./user/repo",
        "../user/repo",
        "~/user",
        "/user/repo",
        "a/b/c",
        "a\\b/c",
        "a/..",
        "a/b--c",
        "",
    ],
)
def test_paths_are_no_names_of_the_hub(source: str) -> None:
    """Whatever looks like a path is never looked up."""
    assert parse_name(source) is None


@pytest.mark.parametrize(
    "source",
    [
        "u/r:../../x.gguf",
        "u/r:/etc/x.gguf",
        "u/r:a/../x.gguf",
        "u/r:a\\x.gguf",
        "u/r:a\x1b[2J.gguf",
        "u/r@../../x",
        "u/r:*",
        "u/r:latest",
    ],
)
def test_names_that_lead_elsewhere(source: str) -> None:
    """A file or revision that could lead out of the cache is refused before anything is asked or written."""
    with pytest.raises(UsageError):
        parse_name(source)


# --- which file is meant


@pytest.mark.parametrize("wanted", ["q4_k_m", "Q4_K_M", "Model-Q4_K_M.gguf"])
def test_quantization_in_any_case(served: FakeHub, wanted: str) -> None:
    """A quantization is found whatever its letters' case, and a file by its name."""
    (path,) = hub.fetch(HubName(REPO, wanted))
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("file", ["model.Q5_K_S.gguf", "sub/q5_k_s.gguf", "Q5_K_S/a-b_q5_k_s.gguf"])
def test_quantization_as_repositories_spell_it(served: FakeHub, file: str) -> None:
    """Repositories put a quantization behind a hyphen, a dot or an underscore, and files in folders."""
    served.repos[REPO] = {file: DATA, "mmproj-q5_k_s.gguf": b"vision", "model-IQ5_K_S.gguf": b"another"}
    (path,) = hub.fetch(HubName(REPO, "Q5_K_S"))
    assert path.read_bytes() == DATA


def test_missing_quantization(served: FakeHub) -> None:
    """A quantization that the repository has not is an error that lists those it has."""
    with pytest.raises(HubError, match="no Q2_K") as caught:
        hub.fetch(HubName(REPO, "Q2_K"))
    assert "Q4_K_M, Q8_0" in caught.value.hint


def test_ambiguous_quantization(served: FakeHub) -> None:
    """Two files of one quantization are an error that names both, and how to say which."""
    served.repos[REPO] = {"a-Q4_K_M.gguf": DATA, "b-Q4_K_M.gguf": DATA}
    with pytest.raises(HubError, match=r"a-Q4_K_M\.gguf, b-Q4_K_M\.gguf") as caught:
        hub.fetch(NAME)
    assert f"{REPO}:a-Q4_K_M.gguf" in caught.value.hint


def test_repository_without_gguf(served: FakeHub) -> None:
    """A repository of another format is said to have no GGUF file."""
    served.repos[REPO] = {"model.safetensors": DATA}
    with pytest.raises(HubError) as caught:
        hub.fetch(NAME)
    assert "no GGUF" in caught.value.hint


def test_split_model(served: FakeHub) -> None:
    """All parts of a split model are fetched, the first is named first, and any part stands for the whole."""
    parts = {f"M-Q4_K_M-0000{number}-of-00003.gguf": DATA[number:] for number in (2, 1, 3)}
    served.repos[REPO] = parts
    paths = hub.fetch(NAME)
    assert [path.name for path in paths] == sorted(parts)
    assert hub.fetch(HubName(REPO, paths[1].name)) == paths == hub.locate(NAME)


def test_split_model_with_a_part_missing(served: FakeHub) -> None:
    """A split model that is not whole is refused, on the Hub and in the cache."""
    served.repos[REPO] = {"M-Q4_K_M-00001-of-00002.gguf": DATA}
    with pytest.raises(HubError, match="lacks parts"):
        hub.fetch(NAME)
    served.repos[REPO]["M-Q4_K_M-00002-of-00002.gguf"] = DATA[1:]
    hub.fetch(NAME)[1].unlink()
    assert hub.locate(NAME) == ()


@pytest.mark.parametrize(
    "file", ["../../../evil-Q4_K_M.gguf", "/etc/evil-Q4_K_M.gguf", "a\\..\\evil-Q4_K_M.gguf", "C:/evil-Q4_K_M.gguf"]
)
def test_hostile_file_name(served: FakeHub, file: str) -> None:
    """A repository whose file names lead out of the cache is refused, and nothing is downloaded."""
    served.repos[REPO] = {file: DATA}
    with pytest.raises(HubError, match="refused"):
        hub.fetch(NAME)
    assert not served.downloads()


# --- the cache


def test_second_use_asks_nobody(served: FakeHub) -> None:
    """A model that is here is used without a request, and without being hashed again."""
    first = hub.find(NAME)
    served.requests.clear()
    seen: list[Progress] = []
    assert hub.find(NAME, watch=seen.append) == first
    assert (served.requests, seen) == ([], [])


def test_cache_is_the_one_that_all_programs_share(served: FakeHub) -> None:
    """huggingface_hub itself finds what was fetched, and what it fetched is found."""
    (path,) = hub.fetch(NAME)
    assert hf_hub_download(REPO, path.name, local_files_only=True) == str(path)
    other = Path(hf_hub_download(REPO, "Model-Q8_0.gguf"))
    served.requests.clear()
    assert hub.find(HubName(REPO, "q8_0"), offline=True) == (other,)
    assert Path(snapshot_download(REPO, local_files_only=True)) == path.parent
    assert not served.requests


def test_offline(served: FakeHub) -> None:
    """Without a network a model comes from the cache, and else the error says how to fetch it; nothing is asked."""
    with pytest.raises(HubError, match="not on this machine") as caught:
        hub.find(NAME, offline=True)
    assert f"arbitrage models pull {NAME}" in caught.value.hint
    assert not served.requests
    hub.fetch(NAME)
    served.requests.clear()
    assert hub.fetch(NAME, offline=True) == hub.find(NAME, offline=True)
    assert not served.requests


def test_offline_by_environment(served: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE means the same as --offline."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        hub.find(NAME)
    assert not served.requests


def test_revision(served: FakeHub) -> None:
    """A commit names the same files as the branch that stands for it; an unknown revision is one clear error."""
    assert hub.fetch(HubName(REPO, revision=COMMIT)) == hub.fetch(NAME)
    with pytest.raises(HubError, match="no revision 'v9'"):
        hub.fetch(HubName(REPO, revision="v9"))


def test_file_system_without_links(served: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no symbolic links a file lies in its snapshot itself, and is checked all the same."""

    def refuse(self: Path, target: str) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    (path,) = hub.fetch(NAME)
    assert not path.is_symlink()
    assert hub.find(NAME, offline=True) == (path,)
    path.write_bytes(DATA[:-1] + b"!")
    with pytest.raises(ModelFileError, match="sha256"):
        hub.find(NAME)


# --- downloads that go wrong


def test_progress(served: FakeHub) -> None:
    """A download tells how far it is, to the last byte."""
    seen: list[Progress] = []
    hub.fetch(NAME, watch=seen.append)
    assert seen[-1] == Progress("downloading", "Model-Q4_K_M.gguf", len(DATA), len(DATA))


def test_broken_connection_is_taken_up_again(served: FakeHub) -> None:
    """A connection that breaks off halfway is asked for the other half, at once."""
    served.cuts = [len(DATA) // 2]
    (path,) = hub.fetch(NAME, sleep=never)
    assert path.read_bytes() == DATA
    assert [request.range for request in served.downloads()] == [None, f"bytes={len(DATA) // 2}-"]


def test_interrupted_download_is_taken_up_by_the_next_run(served: FakeHub) -> None:
    """What was downloaded before Ctrl-C is not downloaded again, and has no final name until it is whole."""

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    served.cuts = [len(DATA) // 2]
    with pytest.raises(KeyboardInterrupt):
        hub.fetch(NAME, watch=interrupt)
    (partial,) = cached_files()
    assert partial.endswith(".incomplete")
    assert hub.locate(NAME) == ()
    (path,) = hub.fetch(NAME)
    assert path.read_bytes() == DATA
    assert served.downloads()[-1].range not in (None, "bytes=0-")
    assert cached_files() == [hashlib.sha256(DATA).hexdigest()]


def test_server_that_ignores_ranges(served: FakeHub) -> None:
    """A server that starts again from the first byte is followed, not appended to."""
    served.cuts, served.ignores_ranges = [1000], True
    (path,) = hub.fetch(NAME)
    assert path.read_bytes() == DATA


def test_server_that_always_breaks_off(served: FakeHub) -> None:
    """Without a new byte the attempts end, after growing pauses, in one clear line."""
    served.cuts = [0] * 20
    pauses: list[float] = []
    with pytest.raises(HubError, match="cannot be reached"):
        hub.fetch(NAME, sleep=pauses.append)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 8.0]


def test_wrong_bytes(served: FakeHub) -> None:
    """A file of the right size and the wrong bytes is never used, and leaves nothing behind."""
    served.corrupt = True
    with pytest.raises(ModelFileError, match="sha256"):
        hub.fetch(NAME)
    assert (cached_files(), hub.locate(NAME)) == ([], ())
    served.corrupt = False
    assert hub.fetch(NAME)[0].read_bytes() == DATA


def test_wrong_bytes_put_there_by_another_program(served: FakeHub) -> None:
    """A file in the shared cache that was never checked is checked before its first use, and removed if it is wrong."""
    served.corrupt = True
    hf_hub_download(REPO, "Model-Q4_K_M.gguf")
    with pytest.raises(ModelFileError, match="removed"):
        hub.find(NAME)
    served.corrupt = False
    assert hub.find(NAME)[0].read_bytes() == DATA


def test_file_that_changed_since_it_was_checked(served: FakeHub) -> None:
    """A checked file whose content changes is hashed again, and refused."""
    (path,) = hub.fetch(NAME)
    path.resolve().write_bytes(DATA[:-1] + b"!")
    with pytest.raises(ModelFileError, match="sha256"):
        hub.find(NAME)


def test_no_published_checksum(served: FakeHub) -> None:
    """A file without a published checksum is not downloaded: there would be nothing to compare it with."""
    served.publishes_sha256 = False
    with pytest.raises(HubError, match="publishes no sha256"):
        hub.fetch(NAME)
    assert not served.downloads()


def test_full_disk(served: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free space is looked at before the first byte is asked for."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(HubError, match="GB free"):
        hub.fetch(NAME)
    assert not served.downloads()


def test_cache_that_cannot_be_written(served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that cannot be made is one clear line."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(HubError, match="cannot be kept"):
        hub.fetch(NAME)


def test_two_at_once(served: FakeHub) -> None:
    """Two processes that want the same model download it once: the second waits, shows how far it is, and uses it."""
    served.gate = threading.Event()
    waits = threading.Event()
    results: list[tuple[Path, ...]] = []

    def watch(progress: Progress) -> None:
        waits.set()

    first = threading.Thread(target=lambda: results.append(hub.fetch(NAME)))
    first.start()
    assert served.is_halfway.wait(20)
    second = threading.Thread(target=lambda: results.append(hub.fetch(NAME, watch=watch)))
    second.start()
    assert waits.wait(20)
    served.gate.set()
    first.join(20)
    second.join(20)
    assert len(results) == 2
    assert results[0] == results[1]
    assert results[0][0].read_bytes() == DATA
    assert len(served.downloads()) == 1


# --- data sets


@pytest.mark.parametrize("name", [LARGE, SMALL], ids=["large", "small"])
def test_data_set_lies_where_all_programs_look(served: FakeHub, name: HubName) -> None:
    """A file of a data set is fetched once, checked, and found by huggingface_hub, which keeps it apart from models."""
    (path,) = hub.find(name)
    assert path.read_bytes() == served.repos[f"datasets/{SET}"][name.wanted]
    assert hf_hub_download(SET, name.wanted, repo_type="dataset", local_files_only=True) == str(path)
    served.requests.clear()
    assert hub.find(name, offline=True) == hub.locate(name) == (path,)
    assert not served.requests
    assert hub.locate(HubName(SET)) == ()


@pytest.mark.parametrize("name", [LARGE, SMALL], ids=["large", "small"])
def test_data_set_that_another_program_fetched(served: FakeHub, name: HubName) -> None:
    """What huggingface_hub fetched is used without a request, once its bytes are found to be the Hub's."""
    path = Path(hf_hub_download(SET, name.wanted, repo_type="dataset"))
    served.requests.clear()
    assert hub.find(name) == (path,)
    assert not served.requests
    path.resolve().write_bytes(b"!" + path.read_bytes()[1:])
    with pytest.raises(ModelFileError, match="not the one that the Hub publishes"):
        hub.find(name)
    assert hub.locate(name) == ()


def test_commit_of_a_data_set(served: FakeHub) -> None:
    """A file says of which commit it is; what was fetched later does not change that."""
    (path,) = hub.find(LARGE)
    assert hub.commit_of(LARGE, path) == COMMIT
    served.push()
    assert hub.find(LARGE) == (path,)
    assert hub.commit_of(LARGE, hub.fetch(LARGE)[0]) == served.sha != COMMIT


def test_small_file_of_a_data_set_is_held_to_its_git_id(served: FakeHub) -> None:
    """Wrong bytes of a file without a published sha256 are not used, and leave nothing behind."""
    served.corrupt = True
    with pytest.raises(ModelFileError, match="git id"):
        hub.fetch(SMALL)
    assert (cached_files(), hub.locate(SMALL)) == ([], ())


def test_broken_download_of_a_small_file_is_taken_up_again(served: FakeHub) -> None:
    """A file that git keeps is asked for from where it broke off, and is right in the end."""
    served.cuts = [2000]
    (path,) = hub.fetch(SMALL, sleep=never)
    assert path.read_bytes() == DATA[:5000]
    assert [request.range for request in served.downloads()] == [None, "bytes=2000-"]


def test_model_is_not_held_to_a_git_id(served: FakeHub) -> None:
    """A model's file without a sha256 is refused, though it has a git id."""
    served.in_git = {"Model-Q4_K_M.gguf"}
    with pytest.raises(HubError, match="publishes no sha256"):
        hub.fetch(NAME)
    hf_hub_download(REPO, "Model-Q4_K_M.gguf")
    with pytest.raises(ModelFileError, match="nothing says"):
        hub.find(NAME)


def test_data_set_without_any_checksum(served: FakeHub) -> None:
    """A file of which the Hub publishes neither sha256 nor git id is not downloaded."""
    served.publishes_git_ids = False
    with pytest.raises(HubError, match="publishes no sha256"):
        hub.fetch(SMALL)
    assert not served.downloads()


def test_data_set_without_the_file(served: FakeHub) -> None:
    """A file that a data set has no more is an error that lists those it has."""
    served.repos[f"datasets/{SET}"] = {"README.md": b"", "other.jsonl": b"{}"}
    with pytest.raises(HubError, match="no main/test") as caught:
        hub.fetch(LARGE)
    assert caught.value.hint == "it has other.jsonl"
    served.repos[f"datasets/{SET}"] = {"README.md": b""}
    with pytest.raises(HubError) as caught:
        hub.fetch(LARGE)
    assert "no JSONL and no parquet" in caught.value.hint


def test_data_set_offline(served: FakeHub) -> None:
    """Without a network a data set that is not here is one clear line, which names no command for models."""
    with pytest.raises(HubError, match="not on this machine") as caught:
        hub.find(SMALL, offline=True)
    assert "models" not in caught.value.hint
    assert not served.requests


def test_gated_data_set(served: FakeHub) -> None:
    """The page where terms are accepted is that of the data set."""
    served.failure = Failure(403, {"X-Error-Code": "GatedRepo"})
    with pytest.raises(HubError, match="gated") as caught:
        hub.fetch(SMALL)
    assert f"https://huggingface.co/datasets/{SET}," in caught.value.hint


# --- refusals, and the token


REFUSALS = {
    "gated": (Failure(403, {"X-Error-Code": "GatedRepo"}), "gated", "hf auth login"),
    "unauthorized": (Failure(401), "private, or no such", "HF_TOKEN"),
    "forbidden": (Failure(403), "token", "HF_TOKEN"),
    "missing": (Failure(404, {"X-Error-Code": "RepoNotFound"}), "there is no user/Model-GGUF", "check the name"),
    "too many": (Failure(429, {"Retry-After": "37"}), "fewer requests", "37 seconds"),
    "broken": (Failure(503), "HTTP 503", "later"),
    "no hub": (Failure(200, body="<html>Welcome to the hotel's WiFi</html>"), "not answer as a Hub", "HF_ENDPOINT"),
    "other json": (Failure(200, body='{"a": 1}'), "not answer as a Hub", "HF_ENDPOINT"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_refusals(served: FakeHub, kind: str) -> None:
    """Every refusal of the Hub is one line that says what is wrong, with a hint that says what to do, at once."""
    served.failure, message, hint = REFUSALS[kind]
    with pytest.raises(HubError) as caught:
        hub.fetch(NAME, sleep=never)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def test_unknown_repository(served: FakeHub) -> None:
    """The Hub says of a repository that does not exist what it says of a private one; both are named."""
    with pytest.raises(HubError, match="private, or no such repository"):
        hub.fetch(HubName("user/nothing"))


def test_nobody_listens(served: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub that cannot be reached is one clear line."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"127\.0\.0\.1 cannot be reached"):
        hub.fetch(NAME)


@pytest.mark.parametrize("kind", [*REFUSALS, "echo", "wrong bytes", "cut", "nothing wrong"])
def test_token_stays_secret(
    served: FakeHub, kind: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A token appears in no message, traceback, log or file, whatever fails, and is not sent to where downloads come from."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    echo = Failure(403, {"X-Error-Message": f"Bearer {TOKEN}"}, json.dumps({"error": f"no access for {TOKEN}"}))
    served.failure = REFUSALS[kind][0] if kind in REFUSALS else echo if kind == "echo" else None
    served.corrupt, served.cuts = kind == "wrong bytes", [0] * 20 if kind == "cut" else []
    told = ""
    try:
        hub.fetch(NAME, sleep=lambda seconds: None)
    except ArbitrageError as error:
        told = "".join(traceback.format_exception(error)) + error.message + error.hint
    assert (kind == "nothing wrong") == (not told)
    assert TOKEN not in told + "".join(capfd.readouterr())
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert {request.authorization for request in served.requests if request.host == "api"} == {f"Bearer {TOKEN}"}
    assert {request.authorization for request in served.downloads()} <= {None}


@pytest.mark.parametrize("token", [TOKEN, "", None])
def test_token_over_http(served: FakeHub, monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    """A token is not sent over http to another machine; without one, http is the user's choice."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match="over http" if token else "cannot be reached"):
        hub.fetch(NAME)
    assert not served.requests


def test_token_that_is_none(served: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that no header could carry is refused without being repeated."""
    monkeypatch.setenv("HF_TOKEN", "hf_SENTINEL é")
    with pytest.raises(HubError) as caught:
        hub.fetch(NAME)
    assert "SENTINEL" not in "".join(traceback.format_exception(caught.value))
