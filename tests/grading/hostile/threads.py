# Starts a thread that outlives the call.
# expected: error
import threading


def f(x):
    threading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()
    return 0
