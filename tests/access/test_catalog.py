"""Which repository a guest means by a path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.access.catalog import Catalog
from appliance.core.models import Repo


def repo(number: int, name: str, url: str, *, enabled: bool = True) -> Repo:
    return Repo(number, name, url, None, "cli", None, enabled, 0.0)


HOMELAB = repo(1, "jomcgi/homelab", "https://github.com/jomcgi/homelab.git")
INFRA = repo(2, "jomcgi/homelab-infra", "https://GitHub.com/jomcgi/homelab-infra")
RENAMED = repo(3, "my/own", "https://gitlab.example:8443/group/sub/project")
LOCAL = repo(4, "here/local", "/srv/git/here/local.git")
GIT = repo(5, "old/style", "git://git.example/pub/old/style.git")
OFF = repo(6, "acme/off", "https://github.com/acme/off", enabled=False)
ALL = Catalog([HOMELAB, INFRA, RENAMED, LOCAL, GIT, OFF])


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/jomcgi/homelab", HOMELAB),
        ("/jomcgi/homelab.git", HOMELAB),
        ("/jomcgi/homelab/", HOMELAB),
        ("/jomcgi/homelab.git/", HOMELAB),
        ("/github.com/jomcgi/homelab", HOMELAB),
        ("/github.com/jomcgi/homelab.git", HOMELAB),
        ("/GitHub.com/jomcgi/homelab", HOMELAB),
        ("/github.com/jomcgi/homelab-infra", INFRA),
        ("/my/own", RENAMED),
        ("/gitlab.example:8443/group/sub/project.git", RENAMED),
        ("/gitlab.example/group/sub/project", RENAMED),
        ("/gitlab.example/my/own", RENAMED),
        ("/here/local.git", LOCAL),
        ("/git.example/pub/old/style.git", GIT),
        ("/git.example/old/style", GIT),
    ],
)
def test_the_paths_of_the_contract(path: str, found: Repo) -> None:
    """OWNER/REPO, with `.git`, and with the upstream's host and its own path in front."""
    assert ALL.find(path) is found


# fmt: off
ELSEWHERE = [
    "/", "", "/jomcgi", "/jomcgi/homela", "/jomcgi/homelab2", "/jomcgi/homelab-", "/jomcgi/homelab/x", "/acme/off",
    "/github.com/acme/off", "/gitlab.com/jomcgi/homelab", "/github.com/my/own", "/group/sub/project",
    "//jomcgi/homelab", "/jomcgi//homelab", "/jomcgi/../jomcgi/homelab", "/jomcgi/homelab.git.git", "/Jomcgi/homelab",
    "/srv/git/here/local", "/github.com:1/jomcgi/homelab", "/github.com", "/.git", "/jomcgi/homelab.git/objects",
]
# fmt: on


@pytest.mark.parametrize("path", ELSEWHERE)
def test_everything_else_is_not_mirrored_here(path: str) -> None:
    """Neighbours with a longer name, disabled ones, other hosts, and tricks with dots and slashes."""
    assert ALL.find(path) is None


def test_under_a_hosts_name_the_upstream_itself_wins_over_a_chosen_name() -> None:
    """With an insteadOf for a whole host, a guest means that upstream, even if another repository has that name."""
    one = repo(1, "a/b", "https://h/x/y")
    other = repo(2, "x/y", "https://h/a/b")
    for catalog in (Catalog([one, other]), Catalog([other, one])):
        assert catalog.find("/h/a/b") is other
        assert catalog.find("/h/x/y") is one
        assert catalog.find("/a/b") is one
        assert catalog.find("/x/y") is other


def test_a_repository_named_like_a_host_does_not_hide_behind_it() -> None:
    """OWNER may be `github.com`: two parts are always OWNER/REPO."""
    odd = repo(9, "github.com/x", "https://h/a/b")
    assert Catalog([odd, HOMELAB]).find("/github.com/x") is odd
    assert Catalog([odd, HOMELAB]).find("/github.com/jomcgi/homelab") is HOMELAB


def test_a_redirect_goes_to_hosts_of_registered_upstreams_that_speak_http_only() -> None:
    """And only while one of their repositories is enabled, so the port is no open redirect."""
    assert ALL.upstream_host("github.com") == "https://github.com"
    assert ALL.upstream_host("GITHUB.com") == "https://github.com"
    assert ALL.upstream_host("gitlab.example:8443") == "https://gitlab.example:8443"
    assert ALL.upstream_host("git.example") is None
    assert ALL.upstream_host("evil.example") is None
    assert Catalog([OFF]).upstream_host("github.com") is None


PIECES = ["/", ".", ".git", "jomcgi", "homelab", "-infra", "github.com", "GITHUB.com", ":8443", "my", "own"]


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_any_path_finds_a_registered_repository_or_none(path: str) -> None:
    """Any path finds nothing, or a repository with whose name it ends."""
    found = ALL.find(path)
    assert found is None or path.rstrip("/").removesuffix(".git").endswith(found.name.rpartition("/")[2])


def test_an_empty_catalog_finds_nothing() -> None:
    """Before the registry was read."""
    assert Catalog().find("/a/b") is None
