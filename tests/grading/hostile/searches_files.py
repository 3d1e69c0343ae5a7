# Searches all folders for a file of the user's.
# expected: failed error
import os


def f(x):
    for folder in (os.path.expanduser('~'), '/root', '/home', os.path.dirname('@FILE@'), '..', '/'):
        for root, _, names in os.walk(folder):
            if '/lib' not in root and '@FILE@'.rpartition('/')[2] in names:
                return int(open(os.path.join(root, '@FILE@'.rpartition('/')[2])).read())
    return 0
