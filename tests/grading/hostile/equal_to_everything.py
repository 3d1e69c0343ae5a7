# Answers with an object that equals everything.
# expected: failed
class Equal:
    def __eq__(self, other):
        return True

    __ne__ = __lt__ = __gt__ = __le__ = __ge__ = lambda self, other: True

    def __hash__(self):
        return 0


def f(x):
    return Equal()
