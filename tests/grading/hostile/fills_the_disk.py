# Writes until the disk is full.
# expected: failed
def f(x):
    for number in range(10_000):
        try:
            with open(str(number), 'wb') as file:
                for _ in range(64):
                    file.write(bytes(1 << 20))
        except OSError:
            return 0
    return 1
