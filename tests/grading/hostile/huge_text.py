# Answers with a text of many megabytes.
# expected: error memory
def f(x):
    return 'x' * (50 << 20)
