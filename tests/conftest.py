"""Fixtures that several test files share: tiny model files, and a folder in memory."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy: test processes share the cores

import atexit
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings
from made_up_tuning import keep_built_in
from tiny_gguf import write_all

from arbitrage_cli.errors import UsageError
from arbitrage_cli.problems.code import find_sandbox
from arbitrage_cli.system.machine import logical_processors


def pytest_configure() -> None:
    """Have signals end what the tests start: a shell that starts them in the background, or nohup, has them ignored by children too."""
    settings.register_profile("tests", deadline=None)  # a busy machine is slow
    settings.load_profile("tests")
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copytree(Path(__file__).parent / "support" / "settings", folder, dirs_exist_ok=True)
    os.environ |= {"XDG_CONFIG_HOME": folder, "XDG_CACHE_HOME": f"{folder}/cache"}
    os.environ |= {"HOME": f"{folder}/home", "OLLAMA_MODELS": f"{folder}/ollama"}  # without models of other programs
    keep_built_in()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if "sandbox" in getattr(item, "fixturenames", ()):
            item.add_marker("sandbox")


@pytest.fixture(autouse=True, scope="session")
def _no_load() -> Iterator[None]:
    """No core counts as taken by other programs, for whose load each command would wait for a fifth of a second."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("arbitrage_cli.app.deciding.prepare.free_cores", logical_processors)
        patched.setattr("arbitrage_cli.app.deciding.prepare.other_cores", lambda seconds: 0.0)
        patched.setattr("arbitrage_cli.costs.probing.other_seconds", float)
        yield


@pytest.fixture(scope="session")
def sandbox() -> list[str]:
    """The sandbox. Without bubblewrap, the test is skipped, or fails if ARBITRAGE_TEST_SANDBOX is set, as in .ci/run."""
    try:
        return find_sandbox()
    except UsageError as error:
        if os.environ.get("ARBITRAGE_TEST_SANDBOX"):
            raise
        pytest.skip(error.message)


@pytest.fixture(autouse=True)
def _bubblewrap_is_asked_for(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the fixture `sandbox`, a test fails on this machine, too, if it needs bubblewrap."""

    def missing() -> NoReturn:
        raise UsageError("this test needs the fixture `sandbox`")

    if "sandbox" not in request.fixturenames:
        monkeypatch.setattr("arbitrage_cli.problems.code.find_sandbox", missing)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Paths of tiny GGUF files: draft, target, spm, base, recurrent, hybrid, embedding."""
    return write_all(tmp_path_factory.mktemp("models"))


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """An empty folder in memory, where the system has such a place: syncing hundreds of files to a disk takes minutes."""
    if not os.access("/dev/shm", os.W_OK):  # noqa: S108 - a place, not a file
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)
