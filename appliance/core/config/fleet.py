"""The settings of a fleet: nodes that name the same NATS servers and the same fleet are one."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from appliance.core.config.fields import parse_count, parse_flag, parse_positive, setting, text

ASYNC, SYNC = "async", "sync"
"""When a guest is told that its turn is recorded: once this node has it, or once the fleet's object store has it."""

_SCHEMES = ("nats", "tls")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_NODE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def _servers(value: Any) -> tuple[str, ...]:
    wanted = 'a list of URLs such as ["nats://nats-1:4222"], without a user or a password'
    if not isinstance(value, list) or not all(isinstance(url, str) for url in value):
        raise ValueError(wanted)
    for url in value:
        try:
            parts = urlsplit(url)
            good = parts.scheme in _SCHEMES and parts.hostname and parts.port != 0 and "@" not in parts.netloc
        except ValueError:
            good = False
        if not good or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError(wanted)
    return tuple(value)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("1 to 32 letters, digits, - and _, because NATS streams are named after it")
    return value


def _node(value: Any) -> str:
    if value != "" and (not isinstance(value, str) or not _NODE.fullmatch(value)):
        raise ValueError('a name of letters, digits, ".", "-" and "_", or "" for the host name')
    return str(value)


def _replicas(value: Any) -> int:
    count = parse_count(value)
    if count not in (1, 3, 5):
        raise ValueError("1, 3 or 5, and at most the number of NATS servers")
    return count


def _durability(value: Any) -> str:
    if value not in (ASYNC, SYNC):
        raise ValueError(f'"{ASYNC}" or "{SYNC}"')
    return str(value)


def _address(value: Any) -> str:
    if value != "":
        parts = urlsplit(text(value))
        if parts.scheme not in ("git", "http", "https") or not parts.hostname:
            raise ValueError('a URL such as "git://node-1:9418", or ""')
        if "@" in parts.netloc:
            raise ValueError("a URL without a user or a password")
    return str(value)


@dataclass(frozen=True)
class FleetConfig:
    """`[fleet]`: which fleet this node belongs to. Without `servers`, it is a node alone."""

    servers: tuple[str, ...] = setting([], _servers, "URLs of the fleet's NATS servers; without any, a node alone.")
    name: str = setting("default", _name, "The fleet. Nodes of the same name on the same servers are one fleet.")
    node: str = setting("", _node, "This node's name, unlike that of every other node; default: the host name.")
    credentials_file: str = setting(
        "", text, 'File with an nkey seed, or with "USER:PASSWORD"; only the service\'s user may read it.'
    )
    tls_ca: str = setting("", text, "File with the certificates that the NATS servers' own are checked with.")
    replicas: int = setting(1, _replicas, "On how many NATS servers everything is stored: 1, 3 or 5.")
    durability: str = setting(
        ASYNC, _durability, 'A push is confirmed once this node has it ("async") or once the fleet has it ("sync").'
    )
    sync_timeout: float = setting(
        "10s", parse_positive, 'How long a push waits for the fleet with durability "sync" before it is refused.'
    )
    replicate_private: bool = setting(
        False, parse_flag, "Put what agents record in private repositories into NATS, too."
    )
    url: str = setting(
        "", _address, "URL at which other nodes fetch from this one; default: public_git, else the git listener."
    )

    @property
    def is_on(self) -> bool:
        """Whether this node belongs to a fleet."""
        return bool(self.servers)

    @property
    def node_name(self) -> str:
        """The name of this node in the fleet."""
        return self.node or re.sub(r"[^A-Za-z0-9_.-]", "-", os.uname().nodename) or "node"
