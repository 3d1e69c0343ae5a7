"""The program without a command line: options, what they stand for, the models of a command, and how a run is made."""
