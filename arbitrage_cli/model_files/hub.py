"""Finds, downloads and verifies files of models and data sets on the Hugging Face Hub.

huggingface_hub sends the requests and manages the shared cache. It is imported inside functions, because importing it is
slow. huggingface_hub 2.4 checks only the size of a download; this module also checks the published checksum.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arbitrage_cli.errors import HubError
from arbitrage_cli.model_files.checksums import (
    GIT_ID,
    SHA256,
    FileProgress,
    OnProgress,
    check_file,
    known_checksums,
    no_progress,
)
from arbitrage_cli.model_files.hub_session import find_token, hub_errors, hub_settings
from arbitrage_cli.model_files.names import HubName, choose, find_model, is_complete
from arbitrage_cli.system.files import write_atomically


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file published on the Hub. `checksum` is a sha256, or a git blob id for a small file."""

    name: str
    size: int
    checksum: str


def locate(name: HubName) -> tuple[Path, ...]:
    """Return the unverified files in the cache, in order, or () if a part is missing. Makes no request."""
    commit = name.revision
    if not GIT_ID.fullmatch(commit):
        with contextlib.suppress(OSError, ValueError):
            commit = (_cache(name) / "refs" / name.revision).read_text().strip()
    snapshot = _cache(name) / "snapshots" / commit
    if not GIT_ID.fullmatch(commit) or not snapshot.is_dir():
        return ()
    model = find_model(name, [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()])
    return tuple(snapshot / part for part in model) if model and is_complete(model) else ()


def find(name: HubName, *, offline: bool = False, on_progress: OnProgress = no_progress) -> tuple[Path, ...]:
    """Return the verified files.

    Files are downloaded only if they are not in the cache. Raises HubError or ModelFileError.
    """
    paths = locate(name)
    for path in paths:
        checksum = next((text for text in known_checksums(path) if _is_checksum(name, text)), None)
        check_file(path, checksum, cache_folder(), on_progress)
    return paths or fetch(name, offline=offline, on_progress=on_progress)


def fetch(name: HubName, *, offline: bool = False, on_progress: OnProgress = no_progress) -> tuple[Path, ...]:
    """Return the verified files of the version that is now on the Hub. Raises the same errors as `find`."""
    if _is_offline(name, offline):
        return find(name, on_progress=on_progress)
    with hub_errors(name):
        commit, files = _published(name)
        paths = tuple(_cache(name) / "snapshots" / commit / file.name for file in files)
        for file, path in zip(files, paths, strict=True):
            if not path.exists():
                _download(name, file, commit, on_progress)
            check_file(path, file.checksum, cache_folder(), on_progress)
        if name.revision != commit:
            write_atomically(_cache(name) / "refs" / name.revision, commit.encode(), new_folder=True)
    return paths


def preview(name: HubName, *, offline: bool = False) -> dict[PublishedFile, bool]:
    """Return the files that `fetch` would return, and whether each file is already in the cache."""
    if _is_offline(name, offline):
        return {PublishedFile(path.name, path.stat().st_size, path.resolve().name): True for path in locate(name)}
    with hub_errors(name):
        commit, files = _published(name)
    snapshot, blobs = _cache(name) / "snapshots" / commit, _cache(name) / "blobs"
    return {file: (snapshot / file.name).exists() or (blobs / file.checksum).exists() for file in files}


def commit_of(name: HubName, path: Path) -> str:
    return path.relative_to(_cache(name) / "snapshots").parts[0]


def cache_folder() -> Path:
    return Path(os.path.realpath(Path(hub_settings().HF_HUB_CACHE).expanduser()))


def _cache(name: HubName) -> Path:
    return cache_folder() / f"{name.kind}s--{name.repo.replace('/', '--')}"


def _is_offline(name: HubName, requested: bool) -> bool:
    is_offline = requested or bool(hub_settings().is_offline_mode())
    if is_offline and not locate(name):
        command = f"arbitrage models pull {name}" if name.kind == "model" else "the same command without them"
        message = f"{name} is not on this machine, and --offline or HF_HUB_OFFLINE prevents a download"
        raise HubError(message, f"with a network, run {command}")
    return is_offline


def _is_checksum(name: HubName, text: str) -> bool:
    return bool(SHA256.fullmatch(text) or (name.kind == "dataset" and GIT_ID.fullmatch(text)))


def _published(name: HubName) -> tuple[str, list[PublishedFile]]:
    from huggingface_hub import HfApi

    timeout = hub_settings().HF_HUB_DOWNLOAD_TIMEOUT
    api: Any = HfApi(hub_settings().ENDPOINT, token=find_token())
    info = api.repo_info(name.repo, repo_type=name.kind, revision=name.revision, files_metadata=True, timeout=timeout)
    if not GIT_ID.fullmatch(info.sha):
        raise ValueError("the commit is not a git hash")
    files = {file.rfilename: file for file in info.siblings}
    return info.sha, [_published_file(name, files[file]) for file in choose(name, list(files))]


def _published_file(name: HubName, file: Any) -> PublishedFile:
    size, checksum = (file.lfs.size, file.lfs.sha256) if file.lfs else (file.size, file.blob_id)
    if not checksum or not _is_checksum(name, checksum):
        raise HubError(f"{name.repo} publishes no sha256 for {file.rfilename}", "use a repository that publishes checksums")
    if not 0 <= size < 1 << 63:
        raise ValueError("the size is out of range")
    return PublishedFile(file.rfilename, int(size), checksum)


def _download(name: HubName, file: PublishedFile, commit: str, on_progress: OnProgress) -> None:
    """Download a file into the cache, or wait until another process has downloaded it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import silent_tqdm

    on_progress(FileProgress("downloading", file.name, 0, file.size))

    class Bar(silent_tqdm):
        done = 0

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)
            if self.done > file.size:
                raise HubError(f"{name}: {file.name} is longer than the published {file.size:,} bytes", "try again later")
            on_progress(FileProgress("downloading", file.name, self.done, file.size))

        def update_transfer(self, *args: object, **options: object) -> None:
            pass

        set_postfix_str = set_transfer_postfix_str = update_transfer

    bar: Any = Bar
    cache, token = cache_folder(), find_token()
    hf_hub_download(name.repo, file.name, repo_type=name.kind, revision=commit, cache_dir=cache, token=token, tqdm_class=bar)
