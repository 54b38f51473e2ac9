"""Tests of appliance/core/api, and of what carries it."""
