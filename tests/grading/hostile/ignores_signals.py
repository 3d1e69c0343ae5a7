# Ignores every signal and goes on.
# expected: time
import signal

for number in signal.valid_signals():
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass


def f(x):
    while True:
        pass
