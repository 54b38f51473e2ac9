"""Operators' tools around a running node.

- `doctor`: checks git, disk, permissions, ports, config, hooks and database, and says how to fix each. `storage_line`:
  what fills the disk.
- `install`: installs the file, the systemd units, the service's user and a first config, which `default_config` makes.
  `listening`: the addresses for guests under systemd. `uninstall`: takes it off again.
- `shell_completion`: the scripts by which shells complete. `shell_files`: those and the man page, where they are put.
- `journal`: where the log of `serve` is.
- `egress`: lists the `host:port` entries that a guest's egress allowlist needs.
- `licenses`: lists the licences of the packages in gitmirror.pyz.

The life of a check: it looks without changing anything, and returns what it found and how to fix it. `doctor` runs
all checks and catches their errors, so that a check that fails does not hide the others.

Invariants: these tools work with or without a running `serve`, and on a broken node. `install` can be run again over
an older version and writes each file atomically; with `--root` it writes nothing outside that directory.
"""
