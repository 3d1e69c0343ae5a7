# Answers with an integer of many megabytes.
# expected: error
def f(x):
    return 1 << (1 << 26)
