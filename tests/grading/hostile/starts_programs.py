# Lets a shell read the file.
# expected: error
import subprocess


def f(x):
    return int(subprocess.run(['/bin/sh', '-c', 'cat @FILE@'], capture_output=True).stdout)
