# Raises what a user's Ctrl-C raises.
# expected: error
def f(x):
    raise KeyboardInterrupt
