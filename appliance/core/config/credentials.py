"""`[[credentials]]`: which entry applies to which upstream, and who may read the mirrors it fills. Pure.

An entry only names the place of a secret and never contains it: `git/keyring.py` reads it and hands it to git.
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
"""Who may read a mirror that a credential fills: everybody (OPEN), or only guests with a read token (TOKEN)."""

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _file(value: Any) -> str:
    """Parses an absolute path or the empty string.

    Characters that ssh would interpret in its options are refused: it expands `%` and `$` there, and parses quotes.
    """
    given = text(value)
    if given and (not given.startswith("/") or re.search(r'[%$"\\\x00-\x1f]', given)):
        raise ValueError("an absolute path without %, $, double quotes and backslashes")
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
    """Normalises a prefix to `SCHEME://HOST[:PORT][/PATH]`, the form of upstreams: no user, default port or `.git`."""
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
    suffix = "" if port in (None, _PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{host}{suffix}{parts.path.rstrip('/').removesuffix('.git')}"


@dataclass(frozen=True)
class CredentialConfig:
    """One `[[credentials]]` entry: the credential for all upstreams below a URL, without the secret itself."""

    url: str = setting(
        "", _prefix, "The beginning of the upstreams' URLs, in whole parts of the path; the longest match wins."
    )
    token_file: str = setting("", _file, "File with the token, mode 0600; every refresh reads it again.")
    command: tuple[str, ...] = setting(
        "", words, "Command that prints the token, instead of token_file; its output is used for a minute."
    )
    username: str = setting("x-access-token", _username, "The user name sent with the token.")
    ssh_key: str = setting("", _file, "For ssh: file with the private key, mode 0600 and without a passphrase.")
    known_hosts: str = setting("", _file, "For ssh: file with the host's public keys; no other host key is accepted.")
    readers: str = setting(
        "token", _readers, 'Who may read the mirrors: "token" (guests with a read token), or "open" (everybody).'
    )

    def fault(self) -> tuple[str, str] | None:
        """Returns what is wrong with the entry and what to do about it, or None when it is valid."""
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
            return f"{given[0]} is for https, but {self.url} is ssh", "give it ssh_key and known_hosts"
        if scheme != "ssh" and (self.ssh_key or self.known_hosts):
            return f"ssh_key and known_hosts are for ssh, but {self.url} is {scheme}", "give it token_file or command"
        if scheme == "ssh" and not self.known_hosts:
            return (
                "known_hosts is missing",
                "ssh-keyscan HOST prints the host's keys: check them, and put them in a file",
            )
        if scheme == "http" and urlsplit(self.url).hostname not in _LOOPBACK:
            return f"a token sent to {self.url} can be read by anybody on the network path", "use the https:// URL"
        return None


class Credentials:
    """Finds the entry for an upstream's address: `SCHEME://HOST[:PORT]/PATH` without user and `.git`."""

    def __init__(self, entries: Iterable[CredentialConfig] = ()) -> None:
        self._by_url = {entry.url: entry for entry in entries}

    def match(self, address: str) -> CredentialConfig | None:
        """Returns the entry with the longest URL that `address` begins with, by whole parts of the path, or None."""
        while "://" in address:
            if (entry := self._by_url.get(address)) is not None:
                return entry
            address = address.rpartition("/")[0]
        return None
