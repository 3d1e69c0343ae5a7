# Raises an error that ends the process when it is shown.
# expected: ended
import os


class Ends(Exception):
    def __str__(self):
        os._exit(0)


def f(x):
    raise Ends
