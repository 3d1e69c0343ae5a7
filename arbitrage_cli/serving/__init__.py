"""An OpenAI-compatible server in front of a pair: HTTP on one side, the scheduler on the other."""
