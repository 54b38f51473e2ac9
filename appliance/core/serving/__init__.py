"""What guests talk to."""
