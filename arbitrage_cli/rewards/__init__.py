"""How good a step is: a process reward model, the target as judge, or rollouts."""
