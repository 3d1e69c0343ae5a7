"""Models on OpenAI-compatible servers: what writes steps and gives rewards over HTTP."""
