# Reads a file through a symbolic link in its own folder.
# expected: error
import os


def f(x):
    if not os.path.islink('link'):
        os.symlink('@FILE@', 'link')
    return int(open('link').read())
