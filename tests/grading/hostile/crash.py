# Reads address zero.
# expected: ended
import ctypes


def f(x):
    return ctypes.string_at(0)
