"""Confidence intervals of numbers, and numbers as text."""
