# Is no Python.
# expected: error
def f(x:
    return
