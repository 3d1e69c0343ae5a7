"""What the built-in models write for one question, as recorded with a tested version of llama-cpp-python.

A version that nobody tested may compute something else without an error. The likeliest tokens here are no near ties: the least
margin is 0.6 nats, and kernels differ by some hundredths.
"""

from pathlib import Path

from arbitrage_cli.arbitrage import single
from arbitrage_cli.errors import ModelUnsupportedError
from arbitrage_cli.inference.backend import Backend
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.kv_cache import Cache
from arbitrage_cli.inference.llama.binding import INSTALL
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Scheduler
from arbitrage_cli.model_files.pairs import models_folder
from arbitrage_cli.types import Finished, Limits, Problem

QUESTION = Problem("", "12 + 30 - 7")
WRITTEN = {
    "draft.gguf": "12 - 7 = 5\n\nThe answer is \\boxed{5}.",
    "target.gguf": "3 + 3 = 6\n\nThe answer is \\boxed{6}.",
}
"""Wrong answers, because their own instructions are missing; what counts is that they are these."""


def check_known_text(path: Path, backend: Backend) -> None:
    """Of a built-in model: ModelUnsupportedError unless it writes what was recorded. Any other model is not checked."""
    if path.resolve().parent != models_folder().resolve() or path.name not in WRITTEN:
        return
    engine = Engine("draft", Cache(backend), Sampler())
    events = Scheduler({"draft": engine}, lambda trace: single(trace, "draft"), Limits()).run([QUESTION])
    texts = [event.trace.text for event in events if isinstance(event, Finished)]
    if texts != [WRITTEN[path.name]]:
        raise ModelUnsupportedError(f"this llama-cpp-python computes something else: {path.name} writes {texts}", INSTALL)
