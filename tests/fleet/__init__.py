"""Nodes that are one fleet, over real NATS servers."""
