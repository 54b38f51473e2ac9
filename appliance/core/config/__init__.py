"""The configuration: read from one TOML file, checked as a whole, and frozen.

- `fields`: declares one setting with its default, how it is read, and its line of help.
- `settings`: all sections as dataclasses, finding the file, reading it, and what is odd about it in `warnings`.
- `credentials`: the `[[credentials]]` entries, and which of them an upstream belongs to.
- `secret_files`: a secret that stays in its own file, and is read again when that changes.

A setting: it is declared once in `settings`; from there come its check, its default, and the table of the docs.
`serve` reads the file at start and at SIGHUP, and replaces the whole Config; whoever needs a setting reads it from
there at the moment of use, so that a reload holds at once.

What always holds: an unknown key is an error that names the file, the key and the nearest known one. A file that is
wrong changes nothing: `serve` goes on with what it had. No secret is ever part of a Config, only the path to one.
"""
