# Moves a file of the user's away.
# expected: error
import os


def f(x):
    os.rename('@FILE@', '@FILE@.moved')
    return 0
