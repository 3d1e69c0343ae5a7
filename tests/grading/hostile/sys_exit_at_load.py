# Exits with success while it is loaded.
# expected: error
import sys

sys.exit(0)
