"""Keeping mirrors equal to their upstreams: what is due when, and doing it."""
