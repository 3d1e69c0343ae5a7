"""The costs of work: the measured costs of tokens, computed times, prices, and the memory of models."""
