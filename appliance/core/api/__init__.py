"""The HTTP API of a running `serve`."""
