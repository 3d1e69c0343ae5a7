# Makes more files than a disk has room for.
# expected: failed
def f(x):
    for number in range(1_000_000):
        try:
            open(str(number), 'w').close()
        except OSError:
            return 0
    return 1
