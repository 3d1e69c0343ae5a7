# Writes for ever.
# expected: time
import os


def f(x):
    while True:
        os.write(1, bytes(1 << 16))
        os.write(2, bytes(1 << 16))
