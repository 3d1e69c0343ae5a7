# Leaves things to do at the end.
# expected: failed
import atexit
import os
import sys
import weakref


class Late:
    def __del__(self):
        os._exit(0)


atexit.register(os._exit, 0)
kept = Late()
weakref.finalize(kept, os._exit, 0)
sys.excepthook = lambda *arguments: os._exit(0)


def f(x):
    return 0
