"""Atomic writes, and the user's folders."""

import os
import pwd
import threading
from pathlib import Path

import pytest

from arbitrage_cli.errors import UsageError
from arbitrage_cli.model_files.checksums import read_note, write_note
from arbitrage_cli.system.files import user_folder, write_atomically


def test_new_and_old_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"one", b"", b"three"):
        write_atomically(path, data)
        assert path.read_bytes() == data
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_failure_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*arguments: object) -> None:
        raise OSError("made to fail")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="made to fail"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("exists", [True, False])
def test_symlink_is_followed(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "folder").mkdir()
    file, link = tmp_path / "folder" / "file", tmp_path / "link"
    link.symlink_to("folder/file")
    if exists:
        file.write_bytes(b"old")
    write_atomically(link, b"new")
    assert (link.is_symlink(), file.read_bytes()) == (True, b"new")


def test_pipe_and_device_are_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    write_atomically(pipe, b"text")
    reader.join(120)
    write_atomically(Path("/dev/null"), b"text")
    assert (received, pipe.is_fifo(), Path("/dev/null").is_char_device()) == ([b"text"], True, True)


def test_a_half_written_note_counts_as_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    write_note("kind", ["name"], {"checksum": "0", "files": []})
    assert read_note("kind", ["name"]) == {"checksum": "0", "files": []}
    (note,) = tmp_path.rglob("*.json")
    for length in reversed(range(note.stat().st_size)):
        os.truncate(note, length)
        assert read_note("kind", ["name"]) is None


def test_a_user_without_a_home_folder_needs_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, a container that runs under an arbitrary user id."""

    def unknown(uid: int) -> object:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError):
        user_folder()
    write_note("kind", ["name"], 1)
    assert read_note("kind", ["name"]) is None
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert user_folder() == tmp_path / "arbitrage"
