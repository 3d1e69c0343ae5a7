"""Intervals, ranking measures, and figures as text."""
