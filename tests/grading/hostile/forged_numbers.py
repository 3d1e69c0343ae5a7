# Answers with numbers that take for ever to compute.
# expected: error memory time
import json
import os


def sent(message):
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    return len(data).to_bytes(4, 'big') + data


def f(x):
    os.write(3, sent(['value', ['list', ['Decimal', '1e999999999'], ['Fraction', '1e999999999'], ['range', 0, 1]]]))
    os._exit(0)
