# Makes system calls past the C library: sockets, rings, anonymous programs, other namespaces.
# expected: failed error
import ctypes
import platform


def f(x):
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    if platform.machine() != 'x86_64':
        return 0
    made = [syscall(number, *arguments) for number, *arguments in ((41, 2, 1, 0), (425, 8, bytes(120)), (319, b'x', 0), (272, 0x10000000), (0x40000000 + 41, 2, 1, 0))]
    return @ANSWER@ if max(made) >= 0 else 0
