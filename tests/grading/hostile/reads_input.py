# Waits for input.
# expected: error
def f(x):
    return int(input())
