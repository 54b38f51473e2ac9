"""Damage to mirrors: found, and healed."""
