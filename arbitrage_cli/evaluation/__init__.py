"""Accuracy and speed of policies, measured side by side."""
