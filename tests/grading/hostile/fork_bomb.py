# Forks without end.
# expected: error time
import os


def f(x):
    while True:
        os.fork()
