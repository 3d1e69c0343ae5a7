"""Computes rewards for steps with a process reward model or from rollouts."""
