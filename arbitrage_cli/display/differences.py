"""Two texts beside each other, with the words that differ marked. Knows no step."""

import re
from difflib import SequenceMatcher

from rich.text import Text

from arbitrage_cli.display.text import safe


def differences(before: str, after: str) -> tuple[Text, Text]:
    """Both texts: words that only the first has are struck, words that only the second has are bold."""
    old, new = (re.findall(r"\s+|\S+", safe(text).expandtabs(4)) for text in (before, after))
    first, second = Text(), Text()
    for kind, start, end, new_start, new_end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        is_same = kind == "equal"
        first.append("".join(old[start:end]), "dim" if is_same else "red strike")
        second.append("".join(new[new_start:new_end]), "" if is_same else "bold green")
    return first, second
