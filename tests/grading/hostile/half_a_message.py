# Announces a message and ends after half of it.
# expected: ended
import os


def f(x):
    os.write(3, bytes([0, 0, 1, 0]) + b'[')
    os._exit(0)
