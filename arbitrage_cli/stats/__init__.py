"""Intervals and ranking measures."""
