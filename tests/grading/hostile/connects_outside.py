# Talks to machines elsewhere.
# expected: failed
import socket


def f(x):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        try:
            with socket.socket(socket.AF_INET, kind) as one:
                one.settimeout(1)
                one.connect(('192.0.2.1', 53))
                one.send(b'secret')
        except OSError:
            pass
    return 0
