# Answers with an integer that equals everything.
# expected: failed
class Equal(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


def f(x):
    return Equal(0)
