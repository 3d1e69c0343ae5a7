# Takes memory bit by bit.
# expected: memory time
def f(x):
    kept = []
    while True:
        kept.append(bytearray(1 << 20))
