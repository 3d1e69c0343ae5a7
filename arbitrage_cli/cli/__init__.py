"""The command line: options, setup, session, and one thin module a command."""
