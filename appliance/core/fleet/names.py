"""The streams, buckets, subjects and keys of a fleet. Pure.

NATS separates the parts of subjects and keys with dots, and allows in them letters, digits, `-`, `_`, `=` and `/`.
Anything else, dots too, is written as `=` and two hex digits for each byte of its UTF-8.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LEASE_SECONDS = 3600.0
"""Seconds after which NATS drops a lease that nobody renews. When others may take it over is theirs to decide."""
NODE_SECONDS = 86400.0
"""Seconds after which NATS drops what a node said of itself."""

_PLAIN = re.compile(rb"[A-Za-z0-9_/-]")
_ESCAPED = re.compile(r"=([0-9A-F]{2})")


def key_of(name: str) -> str:
    """The key, or part of a subject, that stands for a name: `acme/homelab` for itself, `a/b=2Ec` for `a/b.c`."""
    return "".join(
        chr(byte) if _PLAIN.match(bytes([byte])) else f"={byte:02X}" for byte in name.encode("utf-8", "surrogateescape")
    )


def name_of(key: str) -> str | None:
    """The name that a key stands for, or None if `key_of` makes no such key."""
    try:
        raw = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), key).encode("latin-1")
        name = raw.decode("utf-8", "surrogateescape")
    except UnicodeError:
        return None
    return name if key_of(name) == key else None


@dataclass(frozen=True)
class FleetNames:
    """The names in NATS of what belongs to the fleet `fleet`."""

    fleet: str

    @property
    def registry(self) -> str:
        """The key-value bucket of registered repositories: the key is that of the repository's name."""
        return f"gitmirror-{self.fleet}-registry"

    @property
    def nodes(self) -> str:
        """The key-value bucket in which each node says that it is there; entries expire."""
        return f"gitmirror-{self.fleet}-nodes"

    @property
    def leases(self) -> str:
        """The key-value bucket that says which node asks the upstream of a repository; entries expire."""
        return f"gitmirror-{self.fleet}-leases"

    @property
    def objects(self) -> str:
        """The object store of bundles (named by the `uid` of the turn) and attachments (by their SHA-256)."""
        return f"gitmirror-{self.fleet}-objects"

    @property
    def turns(self) -> str:
        """The stream of recorded turns, ended and kept sessions, and attachments."""
        return f"gitmirror-{self.fleet}-turns"

    @property
    def heads(self) -> str:
        """The stream of heads of the nodes' audit logs. Nobody can delete from it."""
        return f"gitmirror-{self.fleet}-heads"

    def turns_of(self, node: str) -> str:
        """The subject of what a node recorded; `*` for every node."""
        return f"gitmirror.{self.fleet}.turns.{_token(node)}"

    def heads_of(self, node: str) -> str:
        """The subject of the heads of a node's log; `*` for every node."""
        return f"gitmirror.{self.fleet}.heads.{_token(node)}"

    @property
    def news(self) -> str:
        """The subject of news about mirrors, which no stream keeps."""
        return f"gitmirror.{self.fleet}.news"

    def requests_to(self, node: str) -> str:
        """The subject on which a node is asked to look at an upstream now."""
        return f"gitmirror.{self.fleet}.ask.{_token(node)}"


def _token(node: str) -> str:
    return node if node == "*" else key_of(node)
