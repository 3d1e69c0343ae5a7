"""Made-up measurements of models, as `arbitrage tune` keeps them."""

from pathlib import Path

from arbitrage_cli.tuning.store import Loading, Machine, ModelFile, Speeds, Tuned

HERE = Machine("a fast one", 8, "0.3.36")
SPEEDS = Speeds(decode=0.1, read=0.01, verify=0.02, verify_few=0.04)


def make_tuned(
    path: Path, machine: Machine = HERE, sha256: str = "a" * 64, threads: int = 3, speeds: Speeds = SPEEDS
) -> Tuned:
    found = path.stat()
    file = ModelFile(str(path.resolve()), found.st_size, found.st_mtime_ns, sha256)
    return Tuned(machine, file, Loading(), "tiny", threads, speeds, "2026-11-01T00:00:00+00:00")
