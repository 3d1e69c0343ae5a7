"""The Hugging Face Hub: getting files of models and data sets into the shared cache, whole and checked, and finding them.

The only importer of huggingface_hub, and only when a name of the Hub is used: its endpoint, its token and the cache that
all programs share are honoured. The bytes are fetched here and not by `hf_hub_download`, which (2.4) throws a download
away when it is broken off, and gives a file its final name before anybody can compare its checksum with the Hub's.
Knows nothing of pairs, of what is inside a file, or of terminals.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import urlsplit

from arbitrage_cli.errors import HubError, ModelFileError
from arbitrage_cli.model_files.names import HubName, ambiguous, choose, is_whole, matching

CHUNK = 1 << 20  # bytes
MAX_RETRIES = 5  # in a row without a new byte
LOCK_SECONDS = 1.0

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_ID = re.compile(r"[0-9a-f]{40}")  # of a commit, and of a file that git keeps itself


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a file is: sizes in bytes."""

    activity: Literal["downloading", "checking"]
    file: str
    done: int
    total: int


Watch = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the Hub publishes it: its name in the repository, its size in bytes, its sha256 or git id."""

    name: str
    size: int
    checksum: str


def locate(name: HubName) -> tuple[Path, ...]:
    """The files in the cache, of a model the first part first; empty if it is not here whole. Asks nobody, checks nothing."""
    snapshot = _snapshot(name)
    if snapshot is None:
        return ()
    here = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    models = matching(name, [file for file in here if name.admits(file)])
    if len(models) > 1:
        raise ambiguous(name, models)
    return tuple(snapshot / part for model in models if is_whole(model) for part in model)


def find(name: HubName, *, offline: bool = False, watch: Watch | None = None) -> tuple[Path, ...]:
    """The files: those in the cache if they are there, without asking the Hub; else fetched.

    Every file's checksum was compared with the Hub's: of a model its sha256, of a data set that or its git id, which is all
    that the Hub publishes of a small file. Errors: HubError, ModelFileError.
    """
    paths = locate(name)
    if not paths:
        return fetch(name, offline=offline, watch=watch)
    try:
        for path in paths:
            _check(name, path, watch)
    except OSError as error:
        raise _disk_error(name, error) from error
    return paths


def fetch(
    name: HubName, *, offline: bool = False, watch: Watch | None = None, sleep: Callable[[float], None] = time.sleep
) -> tuple[Path, ...]:
    """The files as the Hub has them now, downloaded where they are not here yet. Errors as for `find`."""
    from huggingface_hub import constants

    if offline or constants.is_offline_mode():
        if not locate(name):
            again = f"arbitrage models pull {name}" if name.kind == "model" else "the same command without them"
            raise HubError(
                f"{name} is not on this machine, and the network is not used (--offline or HF_HUB_OFFLINE)",
                f"with a network: {again}",
            )
        return find(name, offline=True, watch=watch)
    with _explained(name):
        return _Fetch(name, watch or (lambda progress: None), sleep).run()


def commit_of(name: HubName, path: Path) -> str:
    """The commit of the repository that a file of the cache belongs to."""
    return path.relative_to(_cache(name) / "snapshots").parts[0]


# --- the cache, laid out as huggingface_hub does it: blobs by checksum, snapshots that link to them, refs


def cache_folder() -> Path:
    """Where all programs keep what they fetched from the Hub: HF_HUB_CACHE, or below HF_HOME."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser().resolve()


def _cache(name: HubName) -> Path:
    return cache_folder() / f"{name.kind}s--{name.repo.replace('/', '--')}"


def _snapshot(name: HubName) -> Path | None:
    """The folder of the revision's files; None if nothing of it was ever fetched."""
    cache, commit = _cache(name), name.revision
    if not _GIT_ID.fullmatch(commit):
        try:
            commit = (cache / "refs" / name.revision).read_text().strip()
        except (OSError, ValueError):
            return None
    folder = cache / "snapshots" / commit
    return folder if _GIT_ID.fullmatch(commit) and folder.is_dir() else None


def _link(blob: Path, pointer: Path) -> None:
    """The file's name in its snapshot; the file itself where there are no symbolic links."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except FileExistsError:
        return
    except OSError:
        blob.replace(pointer)


def _replace_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


# --- checksums


def _is_checksum(name: HubName, text: str) -> bool:
    """Whether it is one that may vouch for a file: for a model nothing less than a sha256 does."""
    return bool(_SHA256.fullmatch(text) or (name.kind == "dataset" and _GIT_ID.fullmatch(text)))


def _hasher(checksum: str, size: int) -> "hashlib._Hash":
    """What computes a checksum of that kind over a file of that many bytes."""
    if _SHA256.fullmatch(checksum):
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)  # git's id of a file


def _check(name: HubName, path: Path, watch: Watch | None) -> None:
    """Compare a file in the cache with the checksum that the Hub published for it. ModelFileError, and it is gone, if wrong.

    A file once found right is not read again while its size and its time of change stay the same: hashing several
    gigabytes at every start would take longer than loading them.
    """
    record = _read_record(path)
    link = path.readlink().name if path.is_symlink() else ""
    expected = link if _is_checksum(name, link) else record.get("checksum")
    if expected is None:
        raise ModelFileError(f"{path}: nothing says which checksum it should have", "remove it: it is then fetched anew")
    status = path.stat()
    if record == {"checksum": expected, "size": status.st_size, "mtime_ns": status.st_mtime_ns}:
        return
    with path.open("rb") as stream:
        digest = _hasher(expected, status.st_size)
        for chunk in iter(lambda: stream.read(CHUNK), b""):
            digest.update(chunk)
            if watch:
                watch(Progress("checking", path.name, stream.tell(), status.st_size))
    if digest.hexdigest() != expected:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise _wrong_checksum(path.name, expected)
    _write_record(path, expected)


def _wrong_checksum(file: str, expected: str) -> ModelFileError:
    what = "sha256" if _SHA256.fullmatch(expected) else "git id"
    return ModelFileError(
        f"{file}: its {what} is not the one that the Hub publishes; the wrong file was removed",
        "fetch it again; if that fails too, something on the way (a proxy, a mirror, the disk) changes it",
    )


def _record(path: Path) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "arbitrage" / "verified" / f"{hashlib.sha256(str(path).encode()).hexdigest()}.json"


def _read_record(path: Path) -> dict[str, Any]:
    """What was found out about a file before; empty if nothing was, or it cannot be read."""
    try:
        record = json.loads(_record(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write_record(path: Path, checksum: str) -> None:
    status = path.stat()
    record = {"checksum": checksum, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    with contextlib.suppress(OSError):  # a folder that cannot be written to costs time, not safety
        _replace_text(_record(path), json.dumps(record))


# --- the network


class _Fetch:
    """The way of one model's or data set's files from the Hub into the cache."""

    def __init__(self, name: HubName, watch: Watch, sleep: Callable[[float], None]) -> None:
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers

        self._name, self._watch, self._sleep = name, watch, sleep
        self._cache = _cache(name)
        self._timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        self._headers = build_hf_headers(token=_token() or False) | {"Accept-Encoding": "identity"}

    def run(self) -> tuple[Path, ...]:
        commit, files = self._published()
        snapshot = self._cache / "snapshots" / commit
        missing = [file for file in files if not (snapshot / file.name).exists()]
        self._check_space(missing)
        for file in missing:
            self._place(file, commit)
        if self._name.revision != commit:
            _replace_text(self._cache / "refs" / self._name.revision, commit)
        paths = tuple(snapshot / file.name for file in files)
        for path in paths:
            _check(self._name, path, self._watch)
        return paths

    def _published(self) -> tuple[str, list[RemoteFile]]:
        """The commit that the revision stands for, and the wanted files at it."""
        info = self._info()
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        chosen = choose(self._name, [file for file in siblings if self._name.admits(file)])
        files = [self._remote_file(siblings[file]) for file in chosen]
        if info.sha is None or not _GIT_ID.fullmatch(info.sha):
            raise _no_hub()
        return info.sha, files

    def _remote_file(self, sibling: Any) -> RemoteFile:
        """A file as the Hub's `RepoSibling` describes it. HubError if nothing is published that its bytes could be held to."""
        size = sibling.lfs.size if sibling.lfs else sibling.size
        checksum = (sibling.lfs.sha256 if sibling.lfs else sibling.blob_id) or ""
        if size is None or not _is_checksum(self._name, checksum):
            raise HubError(f"{self._name.repo} publishes no sha256 of {sibling.rfilename}", "without it a file is not used")
        return RemoteFile(sibling.rfilename, size, checksum)

    def _info(self) -> Any:
        """The repository's `ModelInfo` or `DatasetInfo`."""
        from huggingface_hub import HfApi

        name, token = self._name, _token() or False
        try:
            return HfApi().repo_info(
                name.repo,
                repo_type=name.kind,
                revision=name.revision,
                files_metadata=True,
                timeout=self._timeout,
                token=token,
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # no JSON, or JSON of another kind
            raise _no_hub() from error

    def _check_space(self, files: Sequence[RemoteFile]) -> None:
        """HubError if the disk has no room for what is still to come."""
        blobs = self._cache / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        wanted = [file for file in files if not (blobs / file.checksum).exists()]
        needed = sum(max(0, file.size - _size(_partial(blobs / file.checksum))) for file in wanted)
        free = shutil.disk_usage(blobs).free
        if needed > free:
            raise HubError(
                f"{self._name} needs {needed / 1e9:.1f} GB, and {blobs} has {free / 1e9:.1f} GB free",
                "make room there, or point HF_HOME to a larger disk",
            )

    def _place(self, file: RemoteFile, commit: str) -> None:
        """Download a file and link it into its snapshot. Another process that does the same is waited for."""
        from huggingface_hub.utils import WeakFileLock

        blob = self._cache / "blobs" / file.checksum
        lock = self._cache.parent / ".locks" / self._cache.name / f"{file.checksum}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(WeakFileLock(lock, timeout=LOCK_SECONDS))
                    break
                except TimeoutError:
                    self._watch(Progress("downloading", file.name, _size(_partial(blob)), file.size))
            pointer = self._cache / "snapshots" / commit / file.name
            if not blob.exists() and not pointer.exists():
                self._download(file, blob, commit)
                _link(blob, pointer)
                _write_record(pointer, file.checksum)
            elif not pointer.exists():
                _link(blob, pointer)

    def _download(self, file: RemoteFile, blob: Path, commit: str) -> None:
        """Give a file its final name once it is whole and right. What was got before a break is kept for the next time."""
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self._name.repo, file.name, repo_type=self._name.kind, revision=commit)
        partial = _partial(blob)
        with partial.open("a+b") as stream:
            receiver = _Receiver(stream, file, self._watch)
            self._receive(url, receiver)
            stream.flush()
            os.fsync(stream.fileno())
        if not receiver.is_right:
            partial.unlink()
            raise _wrong_checksum(file.name, file.checksum)
        partial.replace(blob)

    def _receive(self, url: str, receiver: "_Receiver") -> None:
        """Ask for what is missing until nothing is, starting again where a connection broke off."""
        import httpx2

        retries = 0
        while receiver.missing > 0:
            before = receiver.missing
            try:
                self._request(url, receiver)
                reason: Exception | None = None
            except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
                reason = error
            retries = 0 if receiver.missing < before else retries + 1
            if retries > MAX_RETRIES:
                raise reason or HubError(f"{self._name}: the download stops before its end", "try again later")
            if retries:
                self._sleep(min(8.0, 2.0 ** (retries - 1)))

    def _request(self, url: str, receiver: "_Receiver") -> None:
        from huggingface_hub import get_session, hf_raise_for_status

        headers = self._headers | ({"Range": f"bytes={receiver.size}-"} if receiver.size else {})
        # The client takes the token out of a request that is redirected to another host.
        with get_session().stream("GET", url, headers=headers, timeout=self._timeout) as response:
            hf_raise_for_status(response)
            if receiver.size and response.status_code != 206:  # the server cannot go on in the middle
                receiver.restart()
            for chunk in response.iter_bytes():  # as it comes: what waits for more would be lost with the connection
                receiver.add(chunk)
                if receiver.missing < 0:
                    return


class _Receiver:
    """A file on its way: its bytes so far, on disk, and their checksum."""

    def __init__(self, stream: BinaryIO, file: RemoteFile, watch: Watch) -> None:
        self._stream, self._file, self._watch = stream, file, watch
        self._digest, self.size = _hasher(file.checksum, file.size), 0
        stream.seek(0)
        for chunk in iter(lambda: stream.read(CHUNK), b""):
            self._digest.update(chunk)
            self.size += len(chunk)
            watch(Progress("checking", file.name, self.size, file.size))
        if self.missing < 0:
            self.restart()

    @property
    def missing(self) -> int:
        return self._file.size - self.size

    @property
    def is_right(self) -> bool:
        return self.missing == 0 and self._digest.hexdigest() == self._file.checksum

    def restart(self) -> None:
        self._stream.truncate(0)
        self._digest, self.size = _hasher(self._file.checksum, self._file.size), 0

    def add(self, chunk: bytes) -> None:
        self._stream.write(chunk)
        self._digest.update(chunk)
        self.size += len(chunk)
        self._watch(Progress("downloading", self._file.name, self.size, self._file.size))


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _token() -> str | None:
    """The user's token. HubError if it would go over the network for all to read, or is none at all."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_token_to_send

    token = get_token_to_send(None)
    endpoint = urlsplit(constants.ENDPOINT)
    if token and endpoint.scheme != "https" and endpoint.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise HubError(
            f"a token is not sent to {endpoint.hostname} over http", "use https in HF_ENDPOINT, or unset HF_TOKEN"
        )
    if token and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise HubError("the Hub's token has characters that no token has", "set HF_TOKEN anew, or: hf auth login")
    return token


# --- errors


@contextlib.contextmanager
def _explained(name: HubName) -> Iterator[None]:
    """Turn what the network, the Hub and the disk raise into one line each. The token is taken out of the causes too."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    if not constants.HF_DEBUG:
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it would write to stderr, whatever is shown there
    try:
        yield
    except HfHubHTTPError as error:
        _forget_token(error)
        raise _http_error(name, error.response.status_code, error.response.headers) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        _forget_token(error)
        raise HubError(
            f"{name}: no such file here, and {_host()} cannot be reached ({error or type(error).__name__})",
            "check the name, or the network: a download goes on where it stopped",
        ) from error
    except OSError as error:
        raise _disk_error(name, error) from error


def _disk_error(name: HubName, error: OSError) -> HubError:
    return HubError(
        f"{name} cannot be kept in {error.filename or _cache(name)} ({error.strerror or error})",
        "make room or change permissions there, or point HF_HOME elsewhere",
    )


def _host() -> str:
    """Whom a message names: the endpoint without its path, and without a password that is written into it."""
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT


def _no_hub() -> HubError:
    return HubError(f"{_host()} does not answer as a Hub does", "check HF_ENDPOINT, and whether this network wants a log-in")


def _http_error(name: HubName, status: int, headers: Any) -> HubError:
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    page = f"https://huggingface.co/{'datasets/' if name.kind == 'dataset' else ''}{name.repo}"
    if headers.get("X-Error-Code") == "GatedRepo":
        return HubError(
            f"{name.repo} is gated: its owner asks you to accept terms first (HTTP {status})",
            f"accept them at {page}, then {log_in}",
        )
    if status in (401, 403):
        return HubError(
            f"{name.repo} is private, or no such repository, or your token is not allowed to read it (HTTP {status})",
            f"check the name; if it is right, {log_in}",
        )
    if headers.get("X-Error-Code") == "RevisionNotFound":
        return HubError(f"{name.repo} has no revision '{name.revision}' (HTTP {status})", "leave out the @, or check it")
    if status == 404:
        return HubError(f"there is no {name} on the Hub (HTTP 404)", f"check the name at {page}")
    if status == 429:
        wait = headers.get("Retry-After", "")
        when = f"in {wait} seconds" if wait.isdigit() else "in some minutes"
        return HubError(
            "the Hub asks for fewer requests (HTTP 429)", f"try again {when}; who is logged in may ask more often"
        )
    return HubError(f"the Hub could not give {name} (HTTP {status})", "try again later: a download goes on where it stopped")


def _forget_token(error: BaseException) -> None:
    """Servers may repeat a token in their answers, and --debug shows those."""
    token = _token()
    seen: BaseException | None = error
    while token and seen is not None:
        seen.args = tuple(arg.replace(token, "[token]") if isinstance(arg, str) else arg for arg in seen.args)
        seen = seen.__cause__ or seen.__context__
