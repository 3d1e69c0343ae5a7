# Reads the memory and descriptors of other processes.
# expected: failed error
import glob
import os


def f(x):
    for process in {@PID@, os.getppid(), *map(int, filter(str.isdigit, os.listdir('/proc')))}:
        for path in glob.glob(f'/proc/{process}/fd/*') + [f'/proc/{process}/environ', f'/proc/{process}/cmdline', f'/proc/{process}/mem']:
            try:
                text = open(path, 'rb').read(1 << 20).decode('latin-1')
            except OSError:
                continue
            if '@ANSWER_NAME@=' in text:
                return int(text.split('@ANSWER_NAME@=')[1].split('\0')[0])
    return 0
