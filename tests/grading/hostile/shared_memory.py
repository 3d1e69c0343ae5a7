# Takes memory that is shared, mapped or in a file.
# expected: memory error time
import mmap


def f(x):
    kept = []
    while True:
        kept.append(mmap.mmap(-1, 1 << 24))
        kept[-1].write(b'x' * (1 << 24))
