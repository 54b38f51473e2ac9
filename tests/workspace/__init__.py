"""Snapshots, the HTTP routes that hand them out, and the guest kit."""
