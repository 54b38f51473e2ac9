"""The command line: parses, calls core, prints. No logic."""
