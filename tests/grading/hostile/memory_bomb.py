# Asks for more memory than there is.
# expected: memory
def f(x):
    return len(bytearray(1 << 40))
