"""Sessions: turns, bases, reading and replaying them, their end, their limits."""
