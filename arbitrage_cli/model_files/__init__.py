"""Model files: names, the Hub, GGUF headers, pairs."""
