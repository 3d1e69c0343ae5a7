"""Answers single questions: calls of a pair, conversations, the server."""
