"""x"""
import re
from collections import Counter
_WORD = re.compile(r"\w+|[^\w\s]")
def share_kept(draft, target):
    words, kept = Counter(_WORD.findall(draft)), Counter(_WORD.findall(target))
    return (words & kept).total() / max(1, words.total())
