"""Final answers: how they are found and compared."""
