# Computes for ever.
# expected: time
def f(x):
    while True:
        pass
