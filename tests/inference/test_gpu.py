"""The GPU path. ARBITRAGE_TEST_GPU names a Python whose llama-cpp-python offloads layers; a software device is enough.

`on_gpu.py` holds the checks, and with the contract and the architectures it runs in that interpreter.
"""

import os
import subprocess
from pathlib import Path

import pytest

PYTHON = os.environ.get("ARBITRAGE_TEST_GPU", "")
SECONDS = 3600  # a software device compiles shaders
HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="ARBITRAGE_TEST_GPU names no Python with a llama-cpp-python that was built for a GPU")
@pytest.mark.parametrize("name", ["on_gpu", "test_backend_contract", "test_architectures"])
def test_the_gpu_passes(name: str) -> None:
    command = [PYTHON, "-m", "pytest", "-p", "no:randomly", "-m", "slow or not slow", str(HERE / f"{name}.py")]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, done.stdout
