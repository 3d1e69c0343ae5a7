# Answers with handles that do not exist, and with the functions of the tests.
# expected: error failed
import json
import os


def sent(message):
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    return len(data).to_bytes(4, 'big') + data


def f(x):
    os.write(3, sent(['value', ['handle', 10**9]]))
    os._exit(0)
