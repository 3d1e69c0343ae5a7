# Takes a hard link to a file of the user's, and opens it by handle.
# expected: error
import os


def f(x):
    os.link('@FILE@', 'link')
    return int(open('link').read())
