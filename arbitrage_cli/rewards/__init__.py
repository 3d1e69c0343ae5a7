"""How good a step is: by a process reward model, by the target as judge, or by rollouts."""
