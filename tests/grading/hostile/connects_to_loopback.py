# Asks a server on this machine for the answer.
# expected: error
import socket


def f(x):
    with socket.create_connection(('127.0.0.1', @PORT@), timeout=2) as connection:
        return int(connection.recv(100))
