"""What an operator does around a running node.

- `doctor`: checks git, disk, permissions, ports, config, hooks and database, and says how to mend each.
- `install`: puts the file, the systemd units, the service's user and a first config into place.
- `egress`: the `host:port` entries that a guest's egress allowlist needs.
- `licenses`: the licences of what is packed into gitmirror.pyz.

A check: it looks, changes nothing, and returns what it found with the command that mends it. `doctor` runs them all,
each guarded, so that one that fails does not hide the others.

What always holds: these run beside a `serve` or without one, and on a node that is broken. `install` can be run again
over an older version, writes each file atomically, and below `--root` touches nothing else.
"""
