"""The GPU path. ARBITRAGE_TEST_GPU names a Python whose llama-cpp-python offloads layers; a software device is enough.

That interpreter runs `on_gpu.py`, and the laws of some architectures with recurrent layers.
"""

import os
import subprocess
from pathlib import Path

import pytest

PYTHON = os.environ.get("ARBITRAGE_TEST_GPU", "")
SECONDS = 3600  # a software device compiles shaders
HERE = Path(__file__).parent
RECURRENT = "jamba or lfm2 and not lfm2moe or qwen35 and not qwen35moe or nemotron_h or mamba2 or granitehybrid"


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="ARBITRAGE_TEST_GPU names no Python with a llama-cpp-python that was built for a GPU")
@pytest.mark.parametrize(("name", "chosen"), [("on_gpu", ""), ("test_architectures", RECURRENT)])
def test_the_gpu_passes(name: str, chosen: str) -> None:
    command = [PYTHON, "-m", "pytest", "-m", "slow or not slow", "-k", chosen, str(HERE / f"{name}.py")]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, done.stdout
