"""The final answer that a solution gives: what stands in its last `\\boxed{...}`.

Knows no model and no data set. Reads only the model's own text: a box in the problem is not an answer.
"""

import re

_MARKS = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def boxed_answer(text: str) -> str | None:
    """The content of the last complete `\\boxed{...}`, braces balanced; None if there is none or it is blank.

    Of nested boxes the outer one counts. One pass, whatever the text.
    """
    boxes: list[tuple[int, int]] = []  # where the content of each complete box begins and ends
    opened: list[int | None] = []  # where the content of each open brace's box begins; None for an ordinary brace
    for mark in _MARKS.finditer(text):
        found = mark.group()
        if found.startswith("\\boxed"):
            opened.append(mark.end())
        elif found == "{":
            opened.append(None)
        elif found == "}" and opened:
            start = opened.pop()
            if start is not None:
                boxes.append((start, mark.start()))
    contents = (text[start:end].strip() for start, end in reversed(boxes))
    return next(filter(None, contents), None)
