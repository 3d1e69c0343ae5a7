# Raises an error that cannot be shown.
# expected: error
class Raises(Exception):
    def __str__(self):
        raise self


def f(x):
    raise Raises
