"""Tests of the git room: one mirror worked on directly."""
