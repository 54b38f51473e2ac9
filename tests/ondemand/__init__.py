"""Repositories on demand."""
