# Reads every descriptor that may have been left open.
# expected: failed error
import os


def f(x):
    for descriptor in range(4, 4096):
        try:
            os.lseek(descriptor, 0, 0)
            return int(os.read(descriptor, 100))
        except (OSError, ValueError):
            pass
    return 0
