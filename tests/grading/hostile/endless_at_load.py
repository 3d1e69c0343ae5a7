# Computes for ever before a test runs.
# expected: time
while True:
    pass
