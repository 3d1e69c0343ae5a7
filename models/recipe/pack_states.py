"""Packs the states of `arbitrage collect` into a compressed file, from which `arbitrage train` trains a router.

python pack_states.py RUN OUT.jsonl.xz [PREFIX...]     # only problems whose ids begin with a PREFIX
"""

import lzma
import sys
from pathlib import Path

from arbitrage_cli.training.collected import read_run


def pack(folder: Path, prefixes: tuple[str, ...]) -> bytes:
    run = read_run(folder)
    solutions = [solution for solution in run.solutions if solution.id.startswith(prefixes)]
    print(f"{len(solutions)} problems, {sum(len(solution.states) for solution in solutions)} states")
    lines = [part.model_dump_json() for part in (run.conditions, *solutions)]
    return lzma.compress("\n".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME)


if __name__ == "__main__":
    run_folder, packed_file, *wanted = sys.argv[1:]
    Path(packed_file).write_bytes(pack(Path(run_folder), tuple(wanted) or ("",)))
