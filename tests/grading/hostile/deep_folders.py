# Makes folders in folders, deeper than a path can name, and closes them.
# expected: failed error
import os


def f(x):
    try:
        for _ in range(3000):
            os.mkdir('d' * 100)
            os.chdir('d' * 100)
    except OSError:
        pass
    os.chmod('.', 0)
    return 0
