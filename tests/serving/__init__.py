"""Tests of the guests' port: what is served, what is refused, what is logged."""
