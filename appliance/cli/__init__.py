"""The command line: parses, calls core, prints. No logic of its own.

- `main`: the group, `--state` and `--config`, errors and exit codes. `context`: what those options mean, looked up
  only when a command needs it; the types of option values.
- `output`: tables, JSON, messages on stderr, colour only on a terminal. `progress`: the bar of a clone.
- One module for each family of commands: `serve`, `repos`, `sessions`, `audit`, `activity`, `status`, `tokens`,
  `guest`, `install`, `tui`.

A command: click parses it, `Options.node()` opens the state directory as its owner, one method of core does the work,
and the result is printed as a table, or as one JSON document with `--json`.

What always holds: stdout has the result alone; everything else goes to stderr. Exit codes are those of the README.
`--help` and `--version` import nothing heavy. Every command's help ends with an example.
"""
