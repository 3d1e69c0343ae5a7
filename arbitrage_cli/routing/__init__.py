"""Who writes a step: policies, features, the trained head, and its thresholds."""
