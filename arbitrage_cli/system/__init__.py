"""The machine and its files: processors, memory, signals, paths."""
