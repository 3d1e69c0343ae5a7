# Does not define what is tested.
# expected: error
g = 1
