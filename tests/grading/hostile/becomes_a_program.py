# Becomes another program.
# expected: error
import os


def f(x):
    os.execv('/bin/sh', ['sh', '-c', 'cat @FILE@ >&3'])
