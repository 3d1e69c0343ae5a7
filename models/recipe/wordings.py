"""Writes the wordings of the exercises, by which the program recognizes questions that the built-in models know.

python wordings.py > ../builtin-wordings.json
"""

import json
import re
from itertools import islice
from typing import Any

from generate import COLOURS, PEOPLE, THINGS, training_problems

from arbitrage_cli.problems.exercises import Digits, Wordings

SEED = 1
SAMPLE = 60_000  # problems; the last 20,000 of them have 10 new sentences


def wordings() -> dict[str, Any]:
    """Return the masked words, and the most digits before and after the decimal point by wording."""
    words = sorted({*(word.lower() for person in PEOPLE for word in person), *THINGS, *COLOURS})
    mask = Wordings(words, {})
    found: dict[str, Digits] = {}
    for problem in islice(training_problems(SEED), SAMPLE):
        for sentence in mask.sentences_of(problem.question):
            found[sentence.wording] = found.get(sentence.wording, Digits()) | sentence.digits
    return {"words": words, "sentences": {wording: [one.before, one.after] for wording, one in sorted(found.items())}}


if __name__ == "__main__":
    text = json.dumps(wordings(), indent=0, ensure_ascii=False)
    print(re.sub(r"\[\n(\d),\n(\d)\n\]", r"[\1, \2]", text))
