# Sends signals to all that it can name.
# expected: failed
import os
import signal


def f(x):
    for process in (@PID@, os.getppid(), 1, -1, 0):
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.kill(process, number) if process != os.getpid() else None
            except OSError:
                pass
    return 0
