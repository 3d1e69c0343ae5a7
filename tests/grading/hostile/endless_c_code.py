# Computes for ever in C, where no handler of Python's runs.
# expected: time
def f(x):
    return 9**9**9
