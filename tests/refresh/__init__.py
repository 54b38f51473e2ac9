"""Tests of following upstreams: the registry, the scheduler, what goes wrong upstream, maintenance."""
