# Deletes all that it can reach.
# expected: failed error
import os
import shutil


def f(x):
    for path in (os.path.dirname('@FILE@'), '/', os.path.expanduser('~'), '..'):
        shutil.rmtree(path, ignore_errors=True)
    return 0
