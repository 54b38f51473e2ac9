"""Fuzzers: what a guest, a webhook or another command may send, mutated, into parsers and into a running `serve`.

`budget` says how many inputs are tried and how long a turn of the event loop may take. `grammar` makes real requests
of each kind, and `mutation` damages them. `test_fuzz_serve` feeds the listeners of a real `serve` while healthy guests
are served, with the checks in `guests`; the other tests feed parsers in process.
"""
