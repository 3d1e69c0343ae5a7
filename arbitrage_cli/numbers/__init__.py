"""Numbers: their confidence intervals, and their text."""
