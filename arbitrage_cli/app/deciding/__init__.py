"""Decides how a request is answered, from facts that are gathered first."""
