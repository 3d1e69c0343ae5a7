# Raises an error that is false and has no length.
# expected: error
class Nothing(Exception):
    def __bool__(self):
        return False

    __len__ = __bool__


def f(x):
    raise Nothing
