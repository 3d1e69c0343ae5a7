# Answers with a kind that does not exist.
# expected: error
import json
import os


def sent(message):
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    return len(data).to_bytes(4, 'big') + data


def f(x):
    os.write(3, sent(['value', ['os.system', 'true']]))
    os._exit(0)
