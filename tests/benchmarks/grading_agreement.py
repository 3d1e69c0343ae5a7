"""How our grading and math-verify alone judge the same answers: the gold ones, rewritten ones (right) and changed ones (wrong).

Usage: python tests/benchmarks/grading_agreement.py FILE.jsonl [FILE.jsonl ...] [--limit N] [--show]

The rows are those of the data sets (`answer` or `final_answer`). Every gold answer is given as if a model had answered it, then
in other spellings that mean the same, then with one thing changed so that it is wrong. A line of the table has, of so many
answers: how many we and math-verify alone (its own parser and defaults, LaTeX and plain text) take for correct, and on how many
the two agree. --show lists each answer that either of them judges wrongly.
"""

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from math_verify import parse, verify

from arbitrage_cli.grading.compare import normalise, read_number
from arbitrage_cli.grading.extract import Extracted, Gold, gold_answer
from arbitrage_cli.grading.grader import Grader, grader_version

PLAIN_NUMBER = re.compile(r"-?[0-9][0-9,]*(?:\.[0-9]+)?")
CHANGED_NUMBER = re.compile(r"(?<![_0-9.])(?<!_\{)[0-9]+")
VARIABLE = re.compile(r"(?<![a-zA-Z\\_{])[a-zA-Z](?![a-zA-Z])")
OTHER_UNITS = {"cents": "dollars", "dollars": "cents", "meters": "kilometers", "hours": "minutes", "inches": "feet"}


def is_letters(text: str) -> bool:
    words = text.replace("\\text", "").replace("{", "").replace("}", "")
    return bool(re.fullmatch(r"[A-Za-z0-9 .'()]+", words) and re.match("[(]?[A-Z]|[a-z]{3}", words))


def rewritten(gold: str) -> Iterator[str]:
    """Other spellings of the same answer."""
    yield f"${gold}$"
    yield re.sub(r"(?<!\\left)\(([^()]*)(?<!\\right)\)", r"\\left( \1 \\right)", gold.replace("\\frac", "\\dfrac"))
    counted = re.fullmatch(r"([-0-9.,]+) +\(([A-Za-z][^()]*)\)", gold)
    value = read_number(normalise(counted[1] if counted else gold))
    if is_letters(gold):
        yield gold.swapcase().replace("\\TEXT", "\\text")
        yield f"\\textbf{{{gold}}}"
    elif counted:
        yield counted[1]
        yield f"{counted[1]} \\text{{ {counted[2]}}}"
        yield f"x = {counted[1]}"
    elif value is not None and PLAIN_NUMBER.fullmatch(gold):
        yield f"x = {gold}"
        yield f"{gold} \\text{{ units}}"
        yield f"\\frac{{{2 * value.numerator}}}{{{2 * value.denominator}}}"
        if value >= 0:
            yield f"\\${gold}"
        if value.denominator == 1:
            yield f"{value.numerator}.00"
            yield f"{value.numerator:,}"
    elif not re.search(r"[,=:]|\\text|\\cup|circ|matrix|_|\\pm|[0-9](?:st|nd|rd|th)\b", gold):
        yield f"\\frac{{2({gold})}}{{2}}"
        yield f"({gold}) + 1 - 1"
        if "x" not in gold:
            yield f"x = {gold}"


def changed(gold: str) -> Iterator[str]:
    """Wrong answers: one number more by 1 or ten times as large, the sign, the order, a bracket, a variable, a unit, a part."""
    if is_letters(gold):
        letter = re.fullmatch(r"\\text\{\(?([A-Z])\)?\}", gold)
        yield gold.replace(letter[1], chr(ord(letter[1]) + 1)) if letter else f"{gold} not"
        yield "7"
        return
    for number in CHANGED_NUMBER.finditer(gold):
        for other in (str(int(number[0]) + 1), f"{number[0]}0" if int(number[0]) and "." not in gold else f"1{number[0]}"):
            yield gold[: number.start()] + other + gold[number.end() :]
    value = read_number(normalise(gold))
    if value != 0 and "," not in gold and not re.search(r"[=:]|\\pm|\\text|\([A-Za-z -]+\)|matrix|\\cup", gold):
        yield gold[1:] if gold.startswith("-") and "-" not in gold[1:] and "+" not in gold else f"-({gold})"
    if value is not None and value.denominator > 1:
        rounded = f"{float(value):.2f}"
        yield rounded if Fraction(rounded) != value else f"{float(value) + 0.001:.4f}"
        yield f"\\frac{{{value.denominator}}}{{{value.numerator}}}"
    yield from _changed_parts(gold)
    if variable := VARIABLE.search(
        re.sub(r"\\text\{[^}]*\}|\\[a-z]+\{?[a-z]*\}?|\([A-Za-z .\-]+\)", lambda found: " " * len(found[0]), gold)
    ):
        yield gold[: variable.start()] + "q" + gold[variable.end() :]
    if based := re.fullmatch(r"([0-9]+)_([0-9]+)", gold):
        yield f"{based[1]}_{int(based[2]) + 1}"
    for unit, other in OTHER_UNITS.items():
        if re.search(rf"\b{unit}\b", gold):
            yield gold.replace(unit, other)


def _changed_parts(gold: str) -> Iterator[str]:
    opening = re.match(r"(\\left *)?[(\[](?! *-?\\infty)", gold)
    if opening and "," in gold and re.search(r"[)\]]$", gold) and "," not in re.sub(r"[(\[][^()\[\]]*[)\]]", "", gold):
        yield re.sub(r"[(\[]", lambda found: "[" if found[0] == "(" else "(", gold, count=1)
    if "," in gold and not opening and not PLAIN_NUMBER.fullmatch(gold):
        yield gold.rpartition(",")[0]
        yield f"{gold}, 12345"
    point = re.fullmatch(r"(?:\\left *)?\(([^,()]+),([^,()]+)(?:\\right *)?\)", gold)
    if point and point[1].strip() != point[2].strip():
        yield f"({point[2]},{point[1]})"


@dataclass
class Tally:
    """Judgements on answers that are all right, or all wrong."""

    should_be: bool
    num: int = 0
    ours: int = 0
    theirs: int = 0
    agreed: int = 0
    unscored: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, gold: Gold, answer: str, grader: Grader) -> None:
        score = grader.grade_answer(Extracted(answer, "the last \\boxed{}"), gold)
        ours, theirs = score.value == "correct", alone(gold, answer)
        self.num += 1
        self.ours += ours
        self.theirs += theirs
        self.agreed += ours == theirs
        self.unscored += score.value == "unscored"
        if score.value == "unscored":
            self.wrong.append(f"unscored: gold {gold.answer!r}, answer {answer!r}: {score.explanation}")
        elif (ours, theirs) != (self.should_be, self.should_be):
            who = {(True, False): "math-verify", (False, True): "we", (False, False): "both"}[
                ours == self.should_be, theirs == self.should_be
            ]
            self.wrong.append(f"{who} wrong: gold {gold.answer!r}, answer {answer!r}: {score.explanation}")


def alone(gold: Gold, answer: str) -> bool:
    """The verdict of math-verify as its README uses it."""
    return bool(verify(parse(f"\\boxed{{{gold.answer}}}"), parse(f"The answer is \\boxed{{{answer}}}.")))


KINDS: dict[str, tuple[bool, Callable[[str], Iterator[str]]]] = {
    "gold": (True, lambda gold: iter([gold])),
    "rewritten": (True, rewritten),
    "changed": (False, changed),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    print(grader_version())
    print(f"{'file':20} {'answers':10} {'n':>6} {'ours':>6} {'alone':>6} {'agree':>7} {'unscored':>8} {'s':>6}")
    with Grader() as grader:
        for path in arguments.files:
            golds = [gold_answer(json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line][
                : arguments.limit
            ]
            for kind, (should_be, variants) in KINDS.items():
                began, tally = time.monotonic(), Tally(should_be)
                for gold in golds:
                    if gold.answer:
                        for answer in dict.fromkeys(variants(gold.answer.replace("$", ""))):
                            tally.add(gold, answer, grader)
                print(
                    f"{path.stem:20} {kind:10} {tally.num:6} {tally.ours:6} {tally.theirs:6} {tally.agreed / max(tally.num, 1):7.2%}"
                    f" {tally.unscored:8} {time.monotonic() - began:6.1f}"
                )
                if arguments.show:
                    print("\n".join(f"    {line}" for line in tally.wrong))


if __name__ == "__main__":
    main()
