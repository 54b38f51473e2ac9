"""Private upstreams: credentials to read them, read tokens to be served what they hold."""
