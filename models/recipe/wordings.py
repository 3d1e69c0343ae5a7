"""Writes the wordings of the exercises, by which the program recognizes questions that the built-in models know.

python wordings.py > ../builtin-wordings.json
"""

import json
from itertools import islice

from generate import COLOURS, PEOPLE, THINGS, training_problems

from arbitrage_cli.problems.exercises import Wordings

SEED = 1
SAMPLE = 60_000  # problems; the last 20,000 of them have 10 new sentences


def wordings() -> dict[str, list[str]]:
    words = sorted({*(word.lower() for person in PEOPLE for word in person), *THINGS, *COLOURS})
    mask = Wordings(words, ())
    problems = islice(training_problems(SEED), SAMPLE)
    sentences = {sentence for problem in problems for sentence in mask.sentences_of(problem.question)}
    return {"words": words, "sentences": sorted(sentences)}


if __name__ == "__main__":
    print(json.dumps(wordings(), indent=0, ensure_ascii=False))
