# Answers with an object whose class is said to be int.
# expected: error failed
class Liar:
    @property
    def __class__(self):
        return int

    def __eq__(self, other):
        return True


def f(x):
    return Liar()
