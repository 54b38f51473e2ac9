"""The guest kit and drives: a workspace that is mounted."""
