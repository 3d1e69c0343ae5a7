# Answers with an iterator without end.
# expected: error
import itertools


def f(x):
    return itertools.count()
