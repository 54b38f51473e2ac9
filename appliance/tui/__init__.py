"""The live view in a terminal: shows and asks. No git, no SQL."""
