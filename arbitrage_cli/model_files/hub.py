"""The Hugging Face Hub: finds files of models and data sets in the shared cache, downloads them, checks them before use.

The only importer of huggingface_hub, which downloads (by Xet or HTTP), locks, and lays out the cache. It is slow to import,
so functions import it. HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE apply. huggingface_hub 2.4 checks
only a download's size; this module compares its checksum with the published one.
"""

import contextlib
import functools
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from arbitrage_cli.errors import HubError, ModelFileError
from arbitrage_cli.model_files.checksums import GIT_ID, SHA256, is_right, known_checksums
from arbitrage_cli.model_files.names import HubName, choose, find_model, is_whole
from arbitrage_cli.system.files import write_atomically

_ETAG = re.compile(r'(?:W/)?"?([0-9a-f]{40,64})"?')
MAX_ANSWER_BYTES = 1 << 24  # of the API about one repository; real answers take some kilobytes


@dataclass(frozen=True, slots=True)
class FileProgress:
    """Progress of one file: bytes done, and its size."""

    activity: Literal["downloading", "checking"]
    file: str
    done: int
    total: int


OnProgress = Callable[[FileProgress], None]


def no_progress(progress: FileProgress) -> None:
    """Ignore it."""


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file as the Hub publishes it: name in the repository, bytes, sha256 (or the git id of a small file)."""

    name: str
    size: int
    checksum: str


def locate(name: HubName) -> tuple[Path, ...]:
    """The files in the cache, a model's first part first; empty unless all parts are there. No request, no check."""
    snapshot = _snapshot(name)
    if snapshot is None:
        return ()
    model = find_model(name, [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()])
    return tuple(snapshot / part for part in model) if model and is_whole(model) else ()


def find(name: HubName, *, offline: bool = False, on_progress: OnProgress = no_progress) -> tuple[Path, ...]:
    """The checked files: those in the cache without a request, else downloaded ones. HubError, ModelFileError.

    A model's file is held to its sha256; a data set's to its sha256 or, the only checksum of a small file, its git id.
    """
    paths = locate(name)
    if not paths:
        return fetch(name, offline=offline, on_progress=on_progress)
    for path in paths:
        _check(name, path, None, on_progress)
    return paths


def fetch(name: HubName, *, offline: bool = False, on_progress: OnProgress = no_progress) -> tuple[Path, ...]:
    """The checked files in the Hub's current version; those in the cache are not downloaded again. Errors as for `find`."""
    if _is_offline(offline):
        _need_local(name)
        return find(name, on_progress=on_progress)
    with _explained(name):
        commit, files = _published(name)
        paths = tuple(_cache(name) / "snapshots" / commit / file.name for file in files)
        for file, path in zip(files, paths, strict=True):
            if not path.exists():
                _download(name, file, commit, on_progress)
            _check(name, path, file.checksum, on_progress)
        if name.revision != commit:
            write_atomically(_cache(name) / "refs" / name.revision, commit.encode(), new_folder=True)
    return paths


def preview(name: HubName, *, offline: bool = False) -> dict[PublishedFile, bool]:
    """The files that `fetch` would return, and whether each is in the cache. Downloads nothing. HubError."""
    if _is_offline(offline):
        return {PublishedFile(path.name, path.stat().st_size, path.resolve().name): True for path in _need_local(name)}
    with _explained(name):
        commit, files = _published(name)
    snapshot, blobs = _cache(name) / "snapshots" / commit, _cache(name) / "blobs"
    return {file: (snapshot / file.name).exists() or (blobs / file.checksum).exists() for file in files}


def _is_offline(asked: bool) -> bool:
    return asked or bool(_constants().is_offline_mode())


def _need_local(name: HubName) -> tuple[Path, ...]:
    """The files in the cache. HubError without any."""
    if paths := locate(name):
        return paths
    command = f"arbitrage models pull {name}" if name.kind == "model" else "the same command without them"
    message = f"{name} is not on this machine, and the network is not used (--offline or HF_HUB_OFFLINE)"
    raise HubError(message, f"with a network: {command}")


def commit_of(name: HubName, path: Path) -> str:
    """The repository's commit that a file in the cache belongs to."""
    return path.relative_to(_cache(name) / "snapshots").parts[0]


# --- the cache, in huggingface_hub's layout: blobs by checksum, snapshots of links to them, refs


def cache_folder() -> Path:
    """The cache that all programs share: HF_HUB_CACHE, or a folder in HF_HOME."""
    return Path(os.path.realpath(Path(_constants().HF_HUB_CACHE).expanduser()))


def _cache(name: HubName) -> Path:
    return cache_folder() / f"{name.kind}s--{name.repo.replace('/', '--')}"


def _snapshot(name: HubName) -> Path | None:
    """The folder of the revision's files; None if nothing of it was ever downloaded."""
    cache, commit = _cache(name), name.revision
    if not GIT_ID.fullmatch(commit):
        try:
            commit = (cache / "refs" / name.revision).read_text().strip()
        except (OSError, ValueError):
            return None
    folder = cache / "snapshots" / commit
    return folder if GIT_ID.fullmatch(commit) and folder.is_dir() else None


def _remove(path: Path) -> None:
    """Remove a file of the cache and the links that lead to it, but nothing outside the cache."""
    while Path(os.path.realpath(path.parent), path.name).is_relative_to(cache_folder()):
        target = path.parent / path.readlink() if path.is_symlink() else None
        path.unlink(missing_ok=True)
        if target is None:
            return
        path = target


def _check(name: HubName, path: Path, published: str | None, on_progress: OnProgress) -> None:
    """ModelFileError, and the file is removed, unless it has its published checksum (default: as the cache records it)."""
    known = [published, *known_checksums(path)]
    checksum = next((text for text in known if text and _is_checksum(name, text)), None)
    if checksum is None:
        raise ModelFileError(f"{path}: its published checksum is not known", "remove the file, and fetch it again")
    try:
        size = path.stat().st_size
        if is_right(path, checksum, lambda done: on_progress(FileProgress("checking", path.name, done, size))):
            return
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror})", "check the file's permissions") from error
    _remove(path)
    outcome = "move it away" if path.exists() else "it was removed"
    raise ModelFileError(
        f"{path}: its checksum is not the one that the Hub publishes; {outcome}",
        "fetch it again; if that fails too, a proxy, a mirror or the disk changes it",
    )


def _is_checksum(name: HubName, text: object) -> bool:
    """Whether the text may vouch for a file: for a model only a sha256 does."""
    patterns = (SHA256,) if name.kind == "model" else (SHA256, GIT_ID)
    return isinstance(text, str) and any(pattern.fullmatch(text) for pattern in patterns)


# --- the network


def _published(name: HubName) -> tuple[str, list[PublishedFile]]:
    """The commit that the revision stands for, and its wanted files. HubError."""
    try:
        info = json.loads(_ask_api(name))
        siblings = {sibling["rfilename"]: sibling for sibling in info["siblings"]}
        if not GIT_ID.fullmatch(info["sha"]):
            raise ValueError("no commit")
        return info["sha"], [_published_file(name, siblings[file]) for file in choose(name, list(siblings))]
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:  # no JSON, or not the Hub's
        raise _not_a_hub() from error


def _published_file(name: HubName, sibling: Any) -> PublishedFile:
    """HubError if the Hub publishes no checksum of the file; TypeError, ValueError or AttributeError for other JSON."""
    lfs = sibling.get("lfs") or {}
    size, checksum = lfs.get("size", sibling.get("size")), lfs.get("sha256", sibling.get("blobId"))
    if not _is_checksum(name, checksum):
        raise HubError(f"{name.repo} publishes no sha256 of {sibling['rfilename']}", "a file is not used without one")
    if not 0 <= size < 1 << 63:
        raise ValueError("no size")
    return PublishedFile(sibling["rfilename"], size, checksum)


def _ask_api(name: HubName) -> bytearray:
    """The API's answer about a repository. HfApi.repo_info would read one of any length into memory."""
    constants, token = _constants(), _token()
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers

    url = f"{constants.ENDPOINT}/api/{name.kind}s/{name.repo}/revision/{quote(name.revision, safe='')}?blobs=true"
    headers, answer = build_hf_headers(token=token), bytearray()
    # The client takes the token out of a request that is redirected to another host.
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        if not response.is_success:
            raise _http_error(name, response.status_code, response.headers)
        for chunk in response.iter_bytes():
            answer += chunk
            if len(answer) > MAX_ANSWER_BYTES:
                raise _not_a_hub()
    return answer


def _download(name: HubName, file: PublishedFile, commit: str, on_progress: OnProgress) -> None:
    """Download a file into the cache; if another process is downloading it, wait for that."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import silent_tqdm

    def report(done: int) -> None:
        if done > file.size:
            raise HubError(f"{name}: {file.name} has more bytes than the Hub publishes", "try again later")
        on_progress(FileProgress("downloading", file.name, done, file.size))

    class Bar(silent_tqdm):
        """The progress bar that huggingface_hub writes to."""

        done = 0

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)
            report(self.done)

        def ignore(self, *args: object, **options: object) -> None:
            """Xet's count of bytes before decompression, and its speeds."""

        update_transfer = set_postfix_str = set_transfer_postfix_str = ignore

    report(0)
    bar: Any = Bar
    cache, token = cache_folder(), _token()
    _check_metadata(name, file, commit, token)
    hf_hub_download(name.repo, file.name, repo_type=name.kind, revision=commit, cache_dir=cache, token=token, tqdm_class=bar)


def _check_metadata(name: HubName, file: PublishedFile, commit: str, token: str | bool) -> None:
    """HubError unless the server would send the file of that commit and checksum."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(name.repo, file.name, repo_type=name.kind, revision=commit)
    found = get_hf_file_metadata(url, token=token)
    if found.commit_hash not in (None, commit) or found.etag not in (None, file.checksum):
        raise HubError(f"{name}: the server would send another {file.name} than it publishes", "check HF_ENDPOINT")


@functools.cache
def _restrain_huggingface_hub() -> None:
    """Check each answer that it gets in this process, and send no telemetry.

    It joins ETag and commit to paths as they are. For its telemetry it reads an answer of any length.
    """
    import httpx2
    from huggingface_hub import set_client_factory

    _constants().HF_HUB_DISABLE_TELEMETRY = True
    hooks = {"response": [_refuse_paths]}
    set_client_factory(lambda: httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=None))


def _refuse_paths(response: Any) -> None:
    """HubError if the answer's commit or ETag is not a checksum. An error's ETag is never read."""
    headers = response.headers
    if response.request.method != "HEAD" or (commit := headers.get("X-Repo-Commit")) is None:
        return  # without a commit huggingface_hub refuses the answer
    etag = headers.get("X-Linked-ETag") or headers.get("ETag")
    if not GIT_ID.fullmatch(commit) or (response.status_code < 400 and etag and not _ETAG.fullmatch(etag)):
        raise HubError(f"{_host()} sends a name that could lead out of the cache", "check HF_ENDPOINT")


def _token() -> str | bool:
    """The user's token, or False. HubError if it is malformed, or would go over the network unencrypted."""
    endpoint = urlsplit(_constants().ENDPOINT)
    from huggingface_hub.utils import get_token_to_send

    token = get_token_to_send(None)
    if token and endpoint.scheme != "https" and endpoint.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise HubError(f"a token is not sent to {_host()} over http", "use https in HF_ENDPOINT, or unset HF_TOKEN")
    if token and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise HubError("the Hub's token has characters that no token has", "correct HF_TOKEN, or run `hf auth login`")
    return token or False


def _host() -> str:
    """The Hub's host name, for messages: its address may hold a password."""
    return str(urlsplit(_constants().ENDPOINT).hostname)


def _constants() -> Any:
    """huggingface_hub's settings. HubError if HF_ENDPOINT is not a web address: importing the rest would fail."""
    with contextlib.suppress(ValueError):  # a port out of range, a broken IPv6 address
        from huggingface_hub import constants

        endpoint = urlsplit(constants.ENDPOINT)
        if endpoint.scheme in ("http", "https") and endpoint.hostname and endpoint.port != 0:
            return constants
    raise HubError("HF_ENDPOINT is not a web address", "for example https://huggingface.co; or unset it")


# --- errors


@contextlib.contextmanager
def _explained(name: HubName) -> Iterator[None]:
    """Turn what the network, the Hub and the disk raise into one line each."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    _restrain_huggingface_hub()
    if not _constants().HF_DEBUG:
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its warnings would disturb a live display
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Not enough free disk space")
            yield
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, RuntimeError, UserWarning, ValueError, AttributeError) as error:
        # RuntimeError: Xet's. ValueError and AttributeError: huggingface_hub's, where an error's body is no JSON object.
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        if isinstance(cause, HfHubHTTPError):
            raise _http_error(name, cause.response.status_code, cause.response.headers) from None  # it may hold the token
        if isinstance(cause, UserWarning) or (isinstance(cause, OSError) and cause.errno):
            hint = "make room or change permissions there, or point HF_HOME elsewhere"
            raise HubError(f"{name} cannot be kept in {_cache(name)} ({cause})", hint) from cause
        hint = "check the name and the network, and try again"
        raise HubError(f"{name} cannot be downloaded from {_host()} ({cause or type(cause).__name__})", hint) from cause


def _not_a_hub() -> HubError:
    return HubError(f"{_host()} does not answer as a Hub does", "check HF_ENDPOINT, or whether the network wants a log-in")


def _http_error(name: HubName, status: int, headers: Mapping[str, str]) -> HubError:
    code, wait = headers.get("X-Error-Code"), headers.get("Retry-After", "")
    page = f"https://huggingface.co/{'datasets/' if name.kind == 'dataset' else ''}{name.repo}"
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    message, hint = f"the Hub cannot give {name}", "try again later"
    if code == "GatedRepo":
        message, hint = f"{name.repo} is gated: its owner asks you to accept terms", f"accept them at {page}, then {log_in}"
    elif status in (401, 403):
        message = f"{name.repo} is private, or no such repository, or your token is not allowed to read it"
        hint = f"check the name; if it is right, {log_in}"
    elif status == 404:
        message, hint = f"there is no {name} on the Hub", f"check the name at {page}"
    elif status == 429:
        when = f"in {wait} seconds" if wait.isdigit() else "in some minutes"
        message, hint = "the Hub asks for fewer requests", f"try again {when}; with a token you may make more"
    return HubError(f"{message} (HTTP {status})", hint)
