# Leaves a process behind that has its own session.
# expected: error
import os
import time


def f(x):
    if not os.fork():
        os.setsid()
        if not os.fork():
            time.sleep(2)
            open('@FILE@', 'w').write('0')
        os._exit(0)
    return 0
