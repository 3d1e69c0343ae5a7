# Ends its process with success before a test runs.
# expected: ended
import os

os._exit(0)
