# Calls itself for ever.
# expected: error
def f(x):
    return f(x)
