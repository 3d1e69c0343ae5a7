# Offers a service.
# expected: error
import socket


def f(x):
    with socket.create_server(('127.0.0.1', 0)) as server:
        server.accept()
    return 0
