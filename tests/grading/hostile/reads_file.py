# Reads a file of the user's.
# expected: error
def f(x):
    return int(open('@FILE@').read())
