"""What a guest's egress allowlist needs: the mirror's ports as guests call them, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.core.config.settings import parse_config
from appliance.core.errors import UsageError
from appliance.core.layout import Layout
from appliance.core.node.node import Node
from appliance.core.ops.egress import egress_entries


def entries(tmp_path: Path, settings: str) -> list[str]:
    """The entries of a node that does not serve just now."""
    config = parse_config(f"[serve]\n{settings}", tmp_path / "gitmirror.toml")
    return egress_entries(Node(Layout(tmp_path / "state"), config))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("", ["127.0.0.1:9418", "127.0.0.1:9419"]),
        ('git = "10.0.0.1:1"\nhttp = "10.0.0.1:2"\nadmin = "10.0.0.1:3"', ["10.0.0.1:1", "10.0.0.1:2"]),
        ('http = ""', ["127.0.0.1:9418"]),
        ('git = ""\nhttp = ""', []),
        ('git = "0.0.0.0:9418"\nhttp = ""\npublic_git = "git://mirror:1234"', ["mirror:1234"]),
        ('public_git = "git://mirror"\npublic_http = "http://mirror"', ["mirror:9418", "mirror:80"]),
        ('public_git = "git://mirror"\npublic_http = "https://mirror/base"', ["mirror:9418", "mirror:443"]),
        ('git = "[::1]:1"\nhttp = ""', ["[::1]:1"]),
        ('public_git = "git://mirror:443"\npublic_http = "https://mirror"', ["mirror:443"]),
    ],
)
def test_the_guests_two_ports_and_nothing_else(tmp_path: Path, settings: str, expected: list[str]) -> None:
    """Not the admin port, no upstream, a listener that is off left out, each entry once."""
    assert entries(tmp_path, settings) == expected


@pytest.mark.parametrize(("listener", "address"), [("git", "0.0.0.0:9418"), ("http", "[::]:80")])
def test_an_address_that_is_everywhere_is_none_to_allow(tmp_path: Path, listener: str, address: str) -> None:
    """The error says which setting to give."""
    with pytest.raises(UsageError, match="listens on all addresses") as caught:
        entries(tmp_path, f'{listener} = "{address}"')
    assert f"public_{listener} = " in caught.value.hint


def test_a_port_that_serve_will_pick_is_not_known_yet(tmp_path: Path) -> None:
    """Neither 0 nor the scheme's usual one would be right."""
    with pytest.raises(UsageError, match="gets its port only when serve starts"):
        entries(tmp_path, 'git = "127.0.0.1:0"')
