"""The command line: it parses arguments, calls core and prints the result. It has no logic of its own.

- `main`: the command group with `--state` and `--config`. `groups`: its sections, and errors that say what was meant.
  `context`: resolves those two options when a command needs them, and defines the types of option values.
- `output`: tables, JSON, messages on stderr, errors and exit codes; colour only on a terminal. `progress`: the
  progress bar of a first clone. `log_format`: the log lines of `serve`. `paging`: which commands show their output in
  a pager. `redrawing`: output that is shown again in place.
- `completing`: answers a shell that completes a word.
- One module for each family of commands: `serve`, `repos`, `sessions`, `audit`, `activity`, `status`, `tokens`,
  `guest`, `install`, `uninstall`, `logs`, `completion`, `tui`.

The life of a command: click parses it, `Options.node()` opens the state directory as its owner, one method of core
does the work, and the command prints the result as a table, or as one JSON document with `--json`.

Invariants: stdout carries only the result; everything else goes to stderr. docs/commands.md lists the exit codes.
`--help` and `--version` import nothing heavy. Every command's help ends with an example.
"""
