# Never stops sending answers.
# expected: error failed
import json
import os


def sent(message):
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    return len(data).to_bytes(4, 'big') + data


def f(x):
    while True:
        os.write(3, sent(['value', 0]) * 1000)
