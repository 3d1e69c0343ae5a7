# Answers with an error that no program can raise.
# expected: error
import json
import os


def sent(message):
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    return len(data).to_bytes(4, 'big') + data


def f(x):
    os.write(3, sent(['error', ['_ProgramGoneError', 'SystemExit', 'exit', 7, None], 'passed']))
    os._exit(0)
