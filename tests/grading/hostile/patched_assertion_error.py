# Makes assertions raise something harmless.
# expected: failed
import builtins


class AssertionError(BaseException):
    pass


builtins.AssertionError = AssertionError


def f(x):
    builtins.AssertionError = None
    return 0
