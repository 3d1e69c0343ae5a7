"""Packs the states of `arbitrage collect` into a compressed file, from which `arbitrage train` trains a router.

python pack_states.py RUN OUT.jsonl.xz [PREFIX...]     # only problems whose ids begin with a PREFIX
"""

import json
import lzma
import sys
from pathlib import Path
from typing import Any

from arbitrage_cli.training.states import read_run, state_to_json


def pack(folder: Path, prefixes: tuple[str, ...]) -> bytes:
    run = read_run(folder)
    solutions: list[dict[str, Any]] = [
        {
            "id": solution.id,
            "question": solution.question,
            "is_whole": solution.is_whole,
            "states": [state_to_json(state) for state in solution.states],
        }
        for solution in run.solutions
        if solution.id.startswith(prefixes)
    ]
    lines = [run.facts.model_dump_json(), *(json.dumps(solution, separators=(",", ":")) for solution in solutions)]
    print(f"{len(solutions)} problems, {sum(len(solution['states']) for solution in solutions)} states")
    return lzma.compress("\n".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME)


if __name__ == "__main__":
    run_folder, packed_file, *wanted = sys.argv[1:]
    Path(packed_file).write_bytes(pack(Path(run_folder), tuple(wanted) or ("",)))
