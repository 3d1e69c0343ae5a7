# Makes namespaces, mounts and another root.
# expected: failed
import ctypes
import os


def f(x):
    libc = ctypes.CDLL(None)
    made = [libc.unshare(flag) for flag in (0x10000000, 0x20000, 0x40000000)]
    made += [libc.mount(b'none', b'/', None, 32 | 4096, None), libc.mount(b'proc', b'/tmp', b'proc', 0, None)]
    made += [libc.umount2(b'/tmp', 2), libc.chroot(b'/'), libc.setuid(0)]
    return @ANSWER@ if 0 in made else 0
