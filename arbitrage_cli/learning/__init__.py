"""From labelled examples to a network in a file. This package does not know what the examples are."""
