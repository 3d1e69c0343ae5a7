# Reads the environment.
# expected: failed error
import ctypes
import os


def f(x):
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    return int(os.environ.get('@ANSWER_NAME@') or getenv(b'@ANSWER_NAME@') or 0)
