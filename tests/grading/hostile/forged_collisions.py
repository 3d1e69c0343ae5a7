# Answers with integers that share one hash, so that a set of them takes for ever.
# expected: time error
import json
import os


def sent(message):
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    return len(data).to_bytes(4, 'big') + data


def f(x):
    data = sent(['value', ['set', *(['int', hex(i * (2**61 - 1))] for i in range(1, 100_000))]])
    while data:
        data = data[os.write(3, data):]
    os._exit(0)
