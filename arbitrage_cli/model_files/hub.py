"""Names, finds, downloads and verifies files of models and data sets on the Hugging Face Hub.

huggingface_hub downloads the files, rejects unsafe file names and manages the cache that all programs share. If a connection
breaks, it continues the file. If the command ends, the next command downloads the file from the beginning, under another
name, and this module removes what a killed command left. huggingface_hub checks only the size of a file; this module also
checks the sha256. HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE are
honored. huggingface_hub is imported inside functions, because importing it is slow.
"""

import contextlib
import ipaddress
import logging
import os
import re
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from arbitrage_cli.errors import HubError, ModelFileError, UsageError
from arbitrage_cli.model_files.checksums import FileProgress, OnProgress, known_sha256, no_progress, published_sha256
from arbitrage_cli.types import frozen

log = logging.getLogger("arbitrage.models")

DEFAULT_QUANT = "Q4_K_M"
LEFT_SECONDS = 60.0  # without a change, after which no program is writing a file any more

_REPO = r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}"
_NAME = re.compile(rf"(?P<repo>{_REPO})(?::(?P<selector>[^:@]+))?(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_QUANT = re.compile(r"(?:UD-)?[A-Z]{1,5}\d\w*", re.ASCII | re.IGNORECASE)
_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<total>(?!00000)\d{5})\.gguf", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LEADS_OUT = re.compile(r'(^|")/|\.\.')  # an absolute path, or one with a parent folder
_MALFORMED = (AttributeError, KeyError, RecursionError, TypeError, ValueError)  # errors that malformed responses cause


@frozen
class HubName:
    """The name of a model or of a data set file on the Hub. `selector` is a quantization or a file name."""

    repo: str
    selector: str = DEFAULT_QUANT
    revision: str = "main"
    kind: Literal["model", "dataset"] = "model"

    def __str__(self) -> str:
        return f"{self.repo}:{self.selector}" + ("" if self.revision == "main" else f"@{self.revision}")

    @property
    def is_file(self) -> bool:
        return self.kind == "dataset" or self.selector.lower().endswith(".gguf")

    def admits(self, file: str) -> bool:
        return file.lower().endswith(".gguf" if self.kind == "model" else (".jsonl", ".parquet"))


def parse_name(source: str) -> HubName | None:
    """Parse `user/repo[:quant][@revision]` or `user/repo:file.gguf[@revision]`. Return None for a path."""
    match = _NAME.fullmatch(source)
    if not match or ".." in match["repo"] or "--" in match["repo"] or match["repo"].lower().endswith(".gguf"):
        return None
    name = HubName(match["repo"], match["selector"] or DEFAULT_QUANT, match["revision"] or "main")
    if not name.is_file and not _QUANT.fullmatch(name.selector):
        hint = "use a quantization such as :Q4_K_M, or a file name"
        raise UsageError(f"{source}: invalid quantization '{name.selector}'", hint)
    if ".." in name.revision or name.revision.startswith(("/", "-")) or name.revision.endswith("/"):
        raise UsageError(f"{source}: invalid revision '{name.revision}'", "use a branch, tag or commit after the @")
    return name


def find_model(name: HubName, files: Iterable[str]) -> tuple[str, ...]:
    """Return the named model's files, in order, or () if no model matches. Raises HubError if several models match."""
    groups: dict[tuple[str, str], list[str]] = {}
    for file in sorted(filter(name.admits, files)):
        part = _PART.fullmatch(file)
        groups.setdefault((part["stem"], part["total"]) if part else (file, ""), []).append(file)
    models = [model for model in groups.values() if (name.selector in model if name.is_file else _has_quant(model[0], name))]
    if len(models) > 1:
        alternatives = ", ".join(model[0] for model in models)
        raise HubError(f"{name} matches several files: {alternatives}", f"name the file: {name.repo}:{models[0][0]}")
    return tuple(models[0]) if models else ()


def parts(file: str) -> tuple[str, ...]:
    """Return the names of all parts of a split model, in order. If the model is not split, return only the file's name."""
    part = _PART.fullmatch(file)
    if not part:
        return (file,)
    return tuple(f"{part['stem']}-{number:05}-of-{part['total']}.gguf" for number in range(1, int(part["total"]) + 1))


def first_files(files: Iterable[str]) -> list[str]:
    """Return the first file of each model, without projectors."""
    models = (file for file in files if file.lower().endswith(".gguf") and parts(file)[0] == file)
    return sorted(file for file in models if not _is_projector(file))


def _is_projector(file: str) -> bool:
    return "mmproj" in PurePosixPath(file).name.lower()


def is_complete(model: Sequence[str]) -> bool:
    return tuple(model) == parts(model[0])


def choose(name: HubName, files: Sequence[str]) -> tuple[str, ...]:
    model = find_model(name, files)
    if not model:
        available = ", ".join(sorted(filter(name.admits, files)))
        hint = "the repository has no suitable files; most GGUF repositories have a name that ends in -GGUF"
        raise HubError(f"{name.repo} has no {name.selector}", f"available: {available}" if available else hint)
    if not is_complete(model):
        raise HubError(f"{name.repo} lacks parts of {model[0]}", "use another quantization")
    return model


def _has_quant(file: str, name: HubName) -> bool:
    path = PurePosixPath(file)
    part = _PART.fullmatch(path.name)
    stem = (part["stem"] if part else path.stem).lower()
    return not _is_projector(file) and re.search(rf"(?:^|[-._]){re.escape(name.selector.lower())}$", stem) is not None


# --- files on the Hub and in its cache


@frozen
class PublishedFile:
    """A file on the Hub, its size in bytes if the Hub publishes it, and whether the file is in the cache."""

    name: str
    size: int | None
    is_here: bool


def locate(name: HubName) -> tuple[Path, ...]:
    """Return the unverified files in the cache, in order, or () if a part is missing. Makes no request."""
    snapshot, files = _cached_files(name)
    model = find_model(name, files)
    return tuple(snapshot / part for part in model) if model and is_complete(model) else ()


def cached_models() -> Iterator[HubName]:
    """Yield the models in the cache, which llama.cpp also uses. Projectors are left out."""
    for folder in sorted(cache_folder().glob("models--*--*")):
        repo = folder.name.removeprefix("models--").replace("--", "/")
        _, files = _cached_files(HubName(repo))
        yield from (HubName(repo, file) for file in first_files(files))


def _cached_files(name: HubName) -> tuple[Path, list[str]]:
    """Return the folder of a revision in the cache, and the names of its files."""
    ref = _cache(name) / "refs" / name.revision
    text = ref.read_text(encoding="latin-1").strip() if ref.is_file() else ""
    commit = text if _COMMIT.fullmatch(text) else name.revision  # an interrupted download may leave an empty or damaged file
    snapshot = _cache(name) / "snapshots" / commit
    return snapshot, [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]


def find(name: HubName, *, offline: bool = False, on_progress: OnProgress = no_progress) -> tuple[Path, ...]:
    """Return the verified files.

    Files are downloaded only if they are not in the cache. Raises HubError or ModelFileError.
    """
    return fetch(name, offline=offline or bool(locate(name)), on_progress=on_progress)


def fetch(name: HubName, *, offline: bool = False, on_progress: OnProgress = no_progress) -> tuple[Path, ...]:
    """Return the verified files of the version that is now on the Hub. Raises the same errors as `find`."""
    if _is_offline(name, offline):
        paths = locate(name)
    else:
        with _hub_errors(name):
            paths = tuple(_download(name, file, on_progress) for file in _published(name))
        for path in paths:
            _remove_unfinished(path)
            if published_sha256(path) is None:
                log.warning("the Hub publishes no sha256 of %s, so only its size was checked", path.name)
    for path in paths:
        _check(path, on_progress)
    return paths


def preview(name: HubName, *, offline: bool = False) -> list[PublishedFile]:
    """Return the files that `fetch` would return, without downloading them. Raises HubError as `fetch` does."""
    from huggingface_hub import hf_hub_download

    if _is_offline(name, offline):
        return [PublishedFile(_file_of(name, path), path.stat().st_size, is_here=True) for path in locate(name)]
    with _hub_errors(name):
        found = [hf_hub_download(name.repo, file, **_place(name), dry_run=True) for file in _published(name)]
    return [PublishedFile(file.filename, file.file_size, file.is_cached) for file in found]


def _check(path: Path, on_progress: OnProgress) -> None:
    """Compare a file's sha256 with the published one, if there is one. If they differ, remove the file from the cache."""
    if published_sha256(path) in (None, known_sha256([path], on_progress)):
        return
    if blob := _blob_of(path):
        blob.unlink(missing_ok=True)
    hint = "download the file again; if the error persists, check the proxy, the mirror and the disk"
    raise ModelFileError(f"{path}: the sha256 differs from the published one", hint)


def _remove_unfinished(path: Path) -> None:
    """Remove what killed commands left of a file that is complete now."""
    if blob := _blob_of(path):
        for left in blob.parent.glob(f"{blob.name}.*.incomplete"):
            with contextlib.suppress(OSError):  # another command may remove it, too
                if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                    left.unlink()


def _blob_of(path: Path) -> Path | None:
    """Return the file in the cache to which a path leads, or None if there is no link, or it leads to a user's own file."""
    if not path.is_symlink():
        return None
    blob = path.parent / path.readlink()
    return blob if Path(os.path.realpath(blob.parent)).is_relative_to(cache_folder()) else None


def commit_of(name: HubName, path: Path) -> str:
    return path.relative_to(_cache(name) / "snapshots").parts[0]


def _file_of(name: HubName, path: Path) -> str:
    """Return the path in the repository of a file in the cache."""
    return Path(*path.relative_to(_cache(name) / "snapshots").parts[1:]).as_posix()


def cache_folder() -> Path:
    return Path(os.path.realpath(Path(_constants().HF_HUB_CACHE).expanduser()))


def _cache(name: HubName) -> Path:
    return cache_folder() / f"{name.kind}s--{name.repo.replace('/', '--')}"


def _constants() -> Any:
    """Return huggingface_hub's settings.

    Raises HubError if HF_ENDPOINT is so malformed that the library cannot be imported.
    """
    try:
        from huggingface_hub import constants
    except ValueError as error:
        hint = "use an address such as https://huggingface.co, or unset HF_ENDPOINT"
        raise HubError(f"HF_ENDPOINT is not a web address ({error})", hint) from error
    return constants


def _is_offline(name: HubName, requested: bool) -> bool:
    is_offline = requested or bool(_constants().is_offline_mode())
    if is_offline and not locate(name):
        command = f"arbitrage models pull {name}" if name.kind == "model" else "the same command without them"
        message = f"{name} is not on this machine, and --offline or HF_HUB_OFFLINE prevents a download"
        raise HubError(message, f"when you are online, run {command}")
    return is_offline


def _published(name: HubName) -> tuple[str, ...]:
    from huggingface_hub import HfApi

    timeout = _constants().HF_HUB_DOWNLOAD_TIMEOUT
    info: Any = HfApi().repo_info(name.repo, repo_type=name.kind, revision=name.revision, timeout=timeout)
    return choose(name, [file.rfilename for file in info.siblings])


def _download(name: HubName, file: str, on_progress: OnProgress) -> Path:
    """Return the file in the cache. Download it first, or wait until another process has downloaded it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import silent_tqdm

    class Bar(silent_tqdm):
        def __init__(self, *, total: int | None, **options: object) -> None:
            self.done = 0
            self.total = total or 0
            self.update(0)

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)
            on_progress(FileProgress("downloading", file, self.done, self.total))

        def update_transfer(self, *args: object, **options: object) -> None:
            pass

        set_postfix_str = set_transfer_postfix_str = update_transfer

    return Path(hf_hub_download(name.repo, file, **_place(name), tqdm_class=Bar))


def _place(name: HubName) -> Any:
    return {"repo_type": name.kind, "revision": name.revision, "cache_dir": cache_folder()}


def _refuse_exposed_token() -> None:
    """Raise HubError if huggingface_hub would send the user's token unencrypted to another machine."""
    from httpx2 import URL
    from huggingface_hub.utils import build_hf_headers

    address = URL(_constants().ENDPOINT)
    host = address.raw_host.decode("ascii")  # the name that the client connects to
    if address.scheme == "http" and not _is_loopback(host) and "authorization" in build_hf_headers():
        message = f"HF_ENDPOINT is http://{host}, so the Hub token would be sent there unencrypted"
        raise HubError(message, "use https in HF_ENDPOINT; or unset HF_TOKEN, and log out with `hf auth logout`")


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):  # a name
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def _refuse_paths(response: Any) -> None:
    """Raise ValueError if the name of a file or of a folder in the cache, which the Hub chooses, leads out of its folder."""
    found = response.headers
    names = found.get("X-Linked-ETag") or found.get("ETag", ""), found.get("X-Repo-Commit", "")
    if response.request.method == "HEAD" and any(map(_LEADS_OUT.search, names)):
        raise ValueError("a name in the response leads out of the cache")


@contextlib.contextmanager
def _guarded_session() -> Iterator[None]:
    """Check the responses to huggingface_hub's client. The client may belong to a host program, so its own hooks stay."""
    from huggingface_hub import get_session

    hooks = get_session().event_hooks["response"]
    hooks.append(_refuse_paths)
    try:
        yield
    finally:
        hooks.remove(_refuse_paths)


@contextlib.contextmanager
def _hub_errors(name: HubName) -> Iterator[None]:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        _refuse_exposed_token()
        with _guarded_session(), warnings.catch_warnings():
            warnings.filterwarnings("error", "Not enough free disk space")
            yield
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, RuntimeError, UserWarning, *_MALFORMED) as error:
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        if isinstance(cause, HfHubHTTPError):
            raise _http_error(name, cause.response) from None  # the cause may contain the token
        reason = str(cause) or type(cause).__name__
        hint = "check the name, the network and HF_ENDPOINT, and try again"
        if isinstance(cause, _MALFORMED):
            reason = "the response is not from a Hub server"
        elif isinstance(cause, UserWarning) or (isinstance(cause, OSError) and cause.errno):
            hint = "free disk space, change the permissions of the cache, or set HF_HOME to another folder"
        raise HubError(f"{name} cannot be downloaded from the Hub ({reason})", hint) from cause


def _http_error(name: HubName, response: Any) -> HubError:
    page = f"https://huggingface.co/{'datasets/' if name.kind == 'dataset' else ''}{name.repo}"
    log_in = f"check the name at {page}; if the repository is gated or private, accept its terms and run `hf auth login`"
    seconds = response.headers.get("Retry-After", "")
    wait = f"try again in {seconds} seconds" if seconds.isdigit() else "try again later"
    hint = {401: log_in, 403: log_in, 404: log_in, 429: f"{wait}; for a higher request limit, run `hf auth login`"}.get(
        response.status_code, wait
    )
    return HubError(f"{name} cannot be downloaded from the Hub (HTTP {response.status_code})", hint)
