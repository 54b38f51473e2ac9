"""A workspace has what a person's clone has."""
