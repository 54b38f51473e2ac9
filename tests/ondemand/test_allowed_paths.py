"""Which upstream a guest's path means, by the patterns of `[[allow]]`."""

from __future__ import annotations

import pytest

from appliance.core.access.allowed import AllowedUpstreams, unusable
from appliance.core.config.repositories import AllowConfig


def allowed(*urls: str, allow_local: bool = False) -> AllowedUpstreams:
    """What entries for these URLs allow."""
    return AllowedUpstreams([AllowConfig(url=url) for url in urls], allow_local=allow_local)


def found(patterns: AllowedUpstreams, path: str) -> tuple[str, str] | None:
    """The name and the URL that a path means."""
    upstream = patterns.at(path)
    return None if upstream is None else (upstream.name, upstream.url)


ACME = allowed("https://github.com/acme/*")


@pytest.mark.parametrize(
    "path",
    [
        "/acme/new",
        "/acme/new.git",
        "/acme/new/",
        "/acme/new.git/",
        "/github.com/acme/new",
        "/GitHub.COM/acme/new.git",
    ],
)
def test_every_form_of_a_path_means_one_upstream(path: str) -> None:
    assert found(ACME, path) == ("acme/new", "https://github.com/acme/new")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/acme",
        "/acme/",
        "/acme/.git",
        "/acme/..",
        "/acme/.",
        "/acme/../other/new",
        "/acme/new/../../other",
        "/acme/a%2e%2e",
        "/acme/%6eew",
        "/acme/new\n",
        "/acme/new\x00",
        "/acme/né",
        "/acme/new?x",
        "/acme/new@{1}",
        "/acme/*",
        "/acme//new",
        "//acme/new",
        "/acme/a/b",
        "/Acme/new",
        "/other/new",
        "/github.com/new",
        "/github.com/other/new",
        "/github.com/acme/../other",
        "/gitlab.com/acme/new",
        "/github.com:8443/acme/new",
        "/acme/" + "x" * 129,
        "/acme/new.git.git",
    ],
)
def test_nothing_else_means_anything(path: str) -> None:
    assert found(ACME, path) is None


def test_a_star_may_end_a_prefix() -> None:
    tools = allowed("https://github.com/acme/tool-*")
    assert found(tools, "/acme/tool-a") == ("acme/tool-a", "https://github.com/acme/tool-a")
    assert found(tools, "/acme/tool-") is not None
    assert found(tools, "/acme/tool") is None and found(tools, "/acme/my-tool-a") is None


def test_an_entry_without_a_star_is_one_repository() -> None:
    one = allowed("https://github.com/acme/new.git")
    # The parser of the config takes `.git` away.
    assert found(allowed("https://github.com/acme/new"), "/acme/new.git") == ("acme/new", "https://github.com/acme/new")
    assert found(allowed("https://github.com/acme/new"), "/acme/newer") is None
    assert found(one, "/acme/new") is None


def test_nested_groups() -> None:
    nested = allowed("https://gitlab.example/group/sub/*")
    wanted = ("sub/x", "https://gitlab.example/group/sub/x")
    for path in ("/sub/x", "/gitlab.example/group/sub/x", "/gitlab.example/sub/x.git"):
        assert found(nested, path) == wanted, path
    for path in ("/group/sub/x", "/group/x", "/gitlab.example/group/x", "/gitlab.example/group/sub/deep/x"):
        assert found(nested, path) is None, path


def test_the_path_of_the_url_wins_over_the_name() -> None:
    """Two groups on one host: the second one's path looks like a name of the first."""
    both = allowed("https://gitlab.example/group/sub/*", "https://gitlab.example/sub/*")
    # The name is that of the first entry, so the second may not have it.
    assert found(both, "/gitlab.example/sub/x") is None
    assert found(both, "/gitlab.example/group/sub/x") == ("sub/x", "https://gitlab.example/group/sub/x")


def test_ports() -> None:
    default = allowed("https://GitHub.com:443/acme/*")
    assert found(default, "/github.com/acme/x") == ("acme/x", "https://github.com/acme/x")
    other = allowed("http://git.example:8080/acme/*")
    for path in ("/git.example:8080/acme/x", "/git.example/acme/x", "/acme/x"):
        assert found(other, path) == ("acme/x", "http://git.example:8080/acme/x"), path
    assert found(other, "/git.example:80/acme/x") is None
    six = allowed("http://[::1]:8080/acme/*")
    assert found(six, "/[::1]:8080/acme/x") == ("acme/x", "http://[::1]:8080/acme/x")


def test_of_two_upstreams_with_one_name_the_first_entry_has_it() -> None:
    both = allowed("https://github.com/acme/*", "https://gitlab.com/acme/*")
    assert found(both, "/acme/x") == found(both, "/github.com/acme/x") == ("acme/x", "https://github.com/acme/x")
    assert found(both, "/gitlab.com/acme/x") is None
    assert both.of("https://gitlab.com/acme/x") is None
    # What the first does not allow, the second may have.
    part = allowed("https://github.com/acme/tool-*", "https://gitlab.com/acme/*")
    assert found(part, "/acme/x") == ("acme/x", "https://gitlab.com/acme/x")
    assert found(part, "/gitlab.com/acme/tool-x") is None


def test_local_upstreams_need_a_setting() -> None:
    entry = AllowConfig(url="file:///srv/git/acme/*")
    assert not AllowedUpstreams([entry])
    assert list(unusable([entry], allow_local=False)) == [
        "allow[1] (file:///srv/git/acme/*) allows nothing, because allow_local is not set"
    ]
    local = AllowedUpstreams([entry], allow_local=True)
    assert found(local, "/acme/x") == ("acme/x", "file:///srv/git/acme/x")
    assert found(local, "/srv/git/acme/x") is None


def test_a_directory_that_is_no_owner_allows_nothing() -> None:
    strange = AllowConfig(url="https://git.example/my%20org/*")
    assert found(AllowedUpstreams([strange]), "/my%20org/x") is None
    assert list(unusable([strange], allow_local=False)) == [
        "allow[1] (https://git.example/my%20org/*) allows nothing, because its directory is no valid OWNER"
    ]


@pytest.mark.parametrize(
    ("url", "is_allowed"),
    [
        ("https://github.com/acme/x", True),
        ("https://GITHUB.com:443/acme/x.git/", True),
        ("http://github.com/acme/x", False),
        ("git@github.com:acme/x", False),
        ("https://github.com/acme/../other/x", False),
        ("https://github.com/acme/sub/x", False),
        ("https://user:secret@github.com/acme/x", False),
        ("ext::sh -c x", False),
        ("-x", False),
        ("", False),
    ],
)
def test_by_url(url: str, is_allowed: bool) -> None:
    upstream = ACME.of(url)
    assert (upstream is not None) == is_allowed
    assert upstream is None or (upstream.name, upstream.url) == ("acme/x", "https://github.com/acme/x")


def test_hosts_that_a_fetch_is_redirected_to() -> None:
    patterns = allowed("http://git.example:8080/acme/*", "git://other.example/acme/*", "https://github.com/acme/*")
    assert patterns.http_host("Git.Example") == patterns.http_host("git.example:8080") == "http://git.example:8080"
    assert patterns.http_host("other.example") is None and patterns.http_host("elsewhere") is None
