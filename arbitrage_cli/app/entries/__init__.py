"""Takes commands and `open_pair` from their options to open models: only these modules see both the request and the session."""
