# Raises errors that are named like those of tests and of the judge.
# expected: error
class _MissingError(Exception):
    pass


class AssertionError(BaseException):
    pass


def f(x):
    raise (_MissingError if x % 2 else AssertionError)('all tests pass')
