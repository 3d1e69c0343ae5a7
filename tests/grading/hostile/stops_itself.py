# Stops its process.
# expected: failed time ended
import os
import signal


def f(x):
    try:
        os.kill(os.getpid(), signal.SIGSTOP)
    except OSError:
        pass
    return 0
