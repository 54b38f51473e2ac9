"""The parts of scripts/bench.py: repositories, servers, clients, measurements, and tables."""
