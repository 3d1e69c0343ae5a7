# Attaches to other processes as a debugger.
# expected: failed error
import ctypes
import os


def f(x):
    ptrace = ctypes.CDLL(None).ptrace
    return @ANSWER@ if any(ptrace(16, process, 0, 0) == 0 for process in (@PID@, os.getppid())) else 0
