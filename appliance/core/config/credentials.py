"""`[[credentials]]`: which entry is for which upstream, and who may read the mirrors that it fills. Pure.

Only where a secret is found is in here, never the secret itself: `git/keyring.py` reads it and hands it to git.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from appliance.core.config.fields import setting, text, words

OPEN = "open"
TOKEN = "token"
"""Who may read a mirror that a credential fills: everybody, or who has a read token."""

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _file(value: Any) -> str:
    """An absolute path, or the empty string. ssh expands `%`, `~` and `$` in its options, and quotes end there."""
    given = text(value)
    if given and (not given.startswith("/") or re.search(r'[%$"\\\x00-\x1f]', given)):
        raise ValueError("an absolute path without %, $, quotes and backslashes")
    return given


def _username(value: Any) -> str:
    given = text(value)
    if not given or re.search(r"[:\x00-\x1f]", given):
        raise ValueError("a user name without a colon")
    return given


def _readers(value: Any) -> str:
    if value not in (TOKEN, OPEN):
        raise ValueError('"token" or "open"')
    return str(value)


_SCP_PREFIX = re.compile(r"(?:[^/@:\s]+@)?([^/@:\s]+):(?!//)/?([^\s]*)")
_PORTS = {"https": 443, "http": 80, "ssh": 22}


def _prefix(value: Any) -> str:
    """`SCHEME://HOST[:PORT][/PATH]` as upstreams are compared with it: no user, no default port, no `.git`."""
    wrong = 'the beginning of a URL: "https://github.com/acme", or "ssh://git@github.com/acme" for ssh'
    given = text(value)
    if not given:
        return ""
    if scp := _SCP_PREFIX.fullmatch(given):
        given = f"ssh://{scp[1]}/{scp[2]}"
    try:
        parts = urlsplit(given)
        port = parts.port
    except ValueError:
        raise ValueError(wrong) from None
    if parts.scheme not in _PORTS or not parts.hostname or parts.hostname.startswith("-"):
        raise ValueError(wrong)
    if parts.query or parts.fragment or re.search(r"[\s\\\x00-\x1f]", given):
        raise ValueError(f"{wrong}; without spaces, ? and #")
    if parts.password is not None or (parts.username is not None and parts.scheme != "ssh"):
        raise ValueError(f"{wrong}; without user and password")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    shown = "" if port in (None, _PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{host}{shown}{parts.path.rstrip('/').removesuffix('.git')}"


@dataclass(frozen=True)
class CredentialConfig:
    """One `[[credentials]]`: what lets refreshes into the upstreams below a URL. The secret itself is never in here."""

    url: str = setting(
        "", _prefix, "What its upstreams' URLs begin with, by whole parts of the path; the longest wins."
    )
    token_file: str = setting("", _file, "File with the token; read again at every refresh.")
    command: tuple[str, ...] = setting("", words, "Prints the token, in place of token_file; asked again each minute.")
    username: str = setting("x-access-token", _username, "The user name that goes with the token.")
    ssh_key: str = setting("", _file, "For ssh: file with the private key, without a passphrase.")
    known_hosts: str = setting("", _file, "For ssh: file with the host's keys; no other host key is accepted.")
    readers: str = setting(
        "token", _readers, 'Who may read the mirrors: "token" (a read token), or "open" (everybody).'
    )

    def fault(self) -> tuple[str, str] | None:
        """What does not go together, and what to do; None when all of it does."""
        scheme = self.url.partition("://")[0]
        given = [key for key in ("token_file", "command", "ssh_key") if getattr(self, key)]
        if not self.url:
            return "url is missing", 'url = "https://github.com/acme"'
        if len(given) != 1:
            return (
                f"has {' and '.join(given) or 'no credential'}",
                "give it one of token_file and command, or ssh_key with known_hosts",
            )
        if scheme == "ssh" and given != ["ssh_key"]:
            return f"{given[0]} is for https, and {self.url} is ssh", "give it ssh_key and known_hosts"
        if scheme != "ssh" and (self.ssh_key or self.known_hosts):
            return f"ssh_key and known_hosts are for ssh, and {self.url} is {scheme}", "give it token_file or command"
        if scheme == "ssh" and not self.known_hosts:
            return (
                "known_hosts is missing",
                "ssh-keyscan HOST prints the host's keys: check them, and put them in a file",
            )
        if scheme == "http" and urlsplit(self.url).hostname not in _LOOPBACK:
            return f"a token over {self.url} can be read by whoever is in between", "use the https:// URL"
        return None


class Credentials:
    """The entries, found by the upstream's address: `SCHEME://HOST[:PORT]/PATH` without user and `.git`."""

    def __init__(self, entries: Iterable[CredentialConfig] = ()) -> None:
        self._by_url = {entry.url: entry for entry in entries}

    def match(self, address: str) -> CredentialConfig | None:
        """The entry whose URL is the longest that `address` begins with, by whole parts of the path; or None."""
        while "://" in address:
            if (entry := self._by_url.get(address)) is not None:
                return entry
            address = address.rpartition("/")[0]
        return None
