"""The configuration: read from one TOML file, checked as a whole, and frozen.

- `fields`: declares one setting with its default, its parser and its line of help.
- `settings`: defines all sections as dataclasses, finds and reads the file, and lists suspicious values in `warnings`.
- `credentials`: parses the `[[credentials]]` entries and finds the entry for an upstream.
- `secret_files`: reads a secret from its own file, and reads it again when the file changes.

The life of a setting: it is declared once in `settings`; its check, its default and the table in the docs come from
that declaration. `serve` reads the file at start and at SIGHUP, and replaces the whole Config. Code reads a setting
from the Config at the moment of use, so that a reload takes effect at once.

Invariants: an unknown key is an error that names the file, the key and the nearest known key. An invalid file changes
nothing: `serve` keeps the configuration it had. A Config never contains a secret, only the path to one.
"""
