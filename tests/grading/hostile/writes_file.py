# Overwrites a file of the user's.
# expected: error
def f(x):
    open('@FILE@', 'w').write('0')
    return 0
