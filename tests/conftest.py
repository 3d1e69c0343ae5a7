"""Fixtures that several test files share: tiny model files, made once a session."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from tiny_gguf import write_all


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Paths of tiny GGUF files: draft, target, spm, base, nan, mamba, bert."""
    return write_all(tmp_path_factory.mktemp("models"))
