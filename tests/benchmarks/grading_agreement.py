"""Grades the right answers of data sets against themselves, and answers that are wrong in one place.

Usage: python tests/benchmarks/grading_agreement.py FILE.jsonl [FILE.jsonl ...] [--limit N]

Rows have their right answer as `answer` or `final_answer`, as `arbitrage bench` reads them. All right answers should be correct,
and no wrong one. A wrong answer has one number that is larger by 1, or ten times as large. Verdicts that should not be are listed.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from arbitrage_cli.grading.extract import Extracted, Gold, gold_answer
from arbitrage_cli.grading.grader import Grader, grader_version

NUMBER = re.compile(r"(?<![_0-9.])(?<!_\{)[0-9]+")  # no index, and no part of a number


def right(answer: str) -> Iterator[str]:
    yield answer


def wrong(answer: str) -> Iterator[str]:
    """One number at a time: larger by 1, or ten times as large (a decimal number or 0: with a digit before it)."""
    for number in NUMBER.finditer(answer):
        more = f"{number[0]}0" if int(number[0]) and "." not in answer else f"1{number[0]}"
        for other in (str(int(number[0]) + 1), more):
            yield answer[: number.start()] + other + answer[number.end() :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    print(grader_version())
    print(f"{'file':20} {'answers':7} {'n':>6} {'correct':>8} {'incorrect':>9} {'unscored':>8}")
    with Grader() as grader:
        for path in arguments.files:
            lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line][: arguments.limit]
            golds = [gold for line in lines if (gold := gold_answer(json.loads(line))).answer]
            for make, wanted in ((right, "correct"), (wrong, "incorrect")):
                grade_all(grader, path.stem, [(gold, one) for gold in golds for one in make(gold.answer or "")], wanted)


def grade_all(grader: Grader, name: str, answers: list[tuple[Gold, str]], wanted: str) -> None:
    verdicts: Counter[str] = Counter()
    surprises = []
    for gold, answer in answers:
        score = grader.grade_answer(Extracted(answer, "the last \\boxed{}"), gold)
        verdicts[score.value] += 1
        if score.value != wanted:
            surprises.append(f"    {score.value}: right is {gold.answer!r}, answer {answer!r}: {score.explanation}")
    kind = "right" if wanted == "correct" else "wrong"
    print(
        f"{name:20} {kind:7} {len(answers):6} {verdicts['correct']:8} {verdicts['incorrect']:9} {verdicts['unscored']:8}",
        *surprises,
        sep="\n",
    )


if __name__ == "__main__":
    main()
