"""The costs of tokens on this machine, and the threads and the memory of models."""
