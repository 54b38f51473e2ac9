"""The parts of scripts/bench.py: repositories, servers, clients, and the tables they make together."""
