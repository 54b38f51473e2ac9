"""Fuzzers: what a guest, a webhook or another command may send, mutated, into parsers and into a running `serve`.

`budget` says how many inputs are tried and how long a turn of the event loop may take. `grammar` makes real requests
of each kind, and `mutation` damages them. `test_wire`, `test_http`, `test_webhook` and `test_control` feed parsers in
process; `test_serve` feeds the listeners of a real `serve` while healthy guests are served.
"""
