# Ends its process with success in the first call.
# expected: ended
import os


def f(x):
    os._exit(0)
