"""Where the LFS server of an upstream is, and to which of them a credential may go."""

from __future__ import annotations

import pytest

from appliance.core.errors import GitmirrorError
from appliance.core.lfs.endpoint import endpoint_of

GITHUB = "https://github.com/acme/widgets"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (GITHUB, f"{GITHUB}.git/info/lfs"),
        (f"{GITHUB}.git", f"{GITHUB}.git/info/lfs"),
        (f"{GITHUB}/", f"{GITHUB}.git/info/lfs"),
        ("https://GitHub.com:8443/a/b", "https://github.com:8443/a/b.git/info/lfs"),
        ("http://git.lan/a/b", "http://git.lan/a/b.git/info/lfs"),
        ("git://git.lan:9418/a/b", "https://git.lan/a/b.git/info/lfs"),
        ("git@github.com:acme/widgets.git", f"{GITHUB}.git/info/lfs"),
        ("ssh://git@github.com:2222/acme/widgets", f"{GITHUB}.git/info/lfs"),
        ("https://[::1]/a/b", "https://[::1]/a/b.git/info/lfs"),
    ],
)
def test_the_server_of_an_upstream(url: str, expected: str) -> None:
    """As git-lfs finds it, but for ssh: there it would ask by ssh."""
    found = endpoint_of(url)
    assert found.url == expected
    assert found.credential is not None and found.credential.url == expected.removesuffix(".git/info/lfs")


@pytest.mark.parametrize(
    ("named", "is_own"),
    [
        (f"{GITHUB}.git/info/lfs", True),
        (f"{GITHUB}/info/lfs/", True),
        (f"{GITHUB}.git", True),
        ("https://someone@github.com/acme/widgets.git/info/lfs", True),
        ("https://github.com/acme/secret.git/info/lfs", False),
        ("https://github.com/acme/widgets/../secret.git/info/lfs", False),
        ("https://github.com/acme/widgets/%2e%2e/secret.git/info/lfs", False),
        ("https://github.com:444/acme/widgets.git/info/lfs", False),
        ("https://lfs.example.com/acme/widgets", False),
        ("https://github.com.evil.example/acme/widgets.git/info/lfs", False),
    ],
)
def test_the_credential_is_for_the_upstreams_own_repository(named: str, is_own: bool) -> None:
    """Whoever writes to a repository chooses what it names, and would get another one's objects."""
    assert (endpoint_of(GITHUB, named).credential is not None) is is_own


@pytest.mark.parametrize(
    "named",
    [
        "http://github.com/acme/widgets.git/info/lfs",
        "http://lfs.example.com/x",
        "file:///etc",
        "/etc",
        "ext::sh -c id",
        "https://user:password@github.com/acme/widgets",
        "https://",
        "-x",
        "https://lfs.example.com/x?y",
        "",
    ],
)
def test_what_may_not_be_named(named: str) -> None:
    """Nothing without TLS, nothing that is not the web; and no password in an error."""
    with pytest.raises(GitmirrorError) as raised:
        endpoint_of(GITHUB, named)
    assert "password@" not in raised.value.message


def test_the_same_scheme_and_host_may_be_named() -> None:
    """An upstream without TLS may keep its objects without TLS beside it."""
    assert endpoint_of("http://git.lan/a/b", "http://git.lan/lfs/a/b").url == "http://git.lan/lfs/a/b"
    with pytest.raises(GitmirrorError):
        endpoint_of("http://git.lan/a/b", "http://other.lan/a/b")
