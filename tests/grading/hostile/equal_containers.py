# Answers with a list that equals everything, and keeps such things in it.
# expected: failed
class Equal(list):
    def __eq__(self, other):
        return True

    __hash__ = None


def f(x):
    return Equal([Equal()])
