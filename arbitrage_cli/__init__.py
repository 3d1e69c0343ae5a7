"""Faster reasoning on one's own machine: a fast draft model writes, a router decides, a strong target model steps in."""

__version__ = "0.1.0"
