"""The configuration file that `install` writes: every setting with its help and its default, all commented out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from appliance.core.config.credentials import CredentialConfig
from appliance.core.config.repositories import AllowConfig, RepoConfig
from appliance.core.config.settings import SECTIONS

EXAMPLE_REPO = {
    "url": "https://github.com/jomcgi/homelab",
    "name": "jomcgi/homelab",
    "branch": "main",
    "interval": "30s",
}
EXAMPLE_ALLOW = {"url": "https://github.com/acme/*", "interval": "5m"}
EXAMPLE_CREDENTIAL = {"url": "https://github.com/acme", "token_file": "/etc/gitmirror/acme.token"}


def default_config() -> bytes:
    """Returns the config that `install` writes: every setting with its help and its default, all commented out."""
    lines = [
        "# gitmirror: every setting with its default. To change one, remove the # and run",
        "# `systemctl reload gitmirror`. Under systemd, the sockets' addresses override git, http and admin of",
        "# [serve]; change them with `gitmirror.pyz install --listen ADDRESS`.",
    ]
    for name, section in SECTIONS.items():
        # Section headers are not commented out, so that a key never ends up in the section above its own.
        lines += ["", f"[{name}]"]
        for item in fields(section):
            lines += [f"# {item.metadata['help']}", f"# {item.name} = {_toml(item.metadata['default'])}"]
    lines += [
        "",
        "# The static list of repositories: one [[repos]] for each. It is read at start and on reload.",
        "# [[repos]]",
        *_entry(RepoConfig, EXAMPLE_REPO),
        "",
        "# Repositories that are mirrored when a guest asks for one: one [[allow]] for each.",
        "# [[allow]]",
        *_entry(AllowConfig, EXAMPLE_ALLOW),
        "",
        "# Credentials for private upstreams: one [[credentials]] for each. Guests need a read token",
        "# (`token issue`) for their mirrors, unless readers says otherwise.",
        "# [[credentials]]",
        *_entry(CredentialConfig, EXAMPLE_CREDENTIAL),
    ]
    return ("\n".join(lines) + "\n").encode()


def _entry(kind: type[Any], example: Mapping[str, str]) -> Iterator[str]:
    """The keys of a commented-out table: with the values of the example, or else their defaults."""
    for item in fields(kind):
        value = example.get(item.name, item.metadata.get("default", ""))
        yield from (f"## {item.metadata['help']}", f"# {item.name} = {_toml(value)}")


def _toml(value: Any) -> str:
    """Formats a default as TOML. Defaults are strings without quotes, whole numbers, booleans and lists of them."""
    if isinstance(value, list):
        return f"[{', '.join(_toml(each) for each in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else f'"{value}"'
