"""Workspaces as drives: what is written, and what a kernel makes of it."""
