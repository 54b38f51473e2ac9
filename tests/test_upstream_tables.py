"""Upstream URLs where tables of examples end: any text at all, default ports, IPv6, and names of branches."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core.errors import UsageError
from appliance.core.names import is_branch_name, is_repo_name
from appliance.core.node.state_dir import wanted_repo
from appliance.core.upstream import parse_upstream, same_upstream
from tests.support.gitutil import git_bytes

PIECES = [*"abz:/@.-?#[]%\\ \n=+~", "://", "https://h/", "git@", "ext::", "file://"]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_any_text_is_an_upstream_or_a_usage_error(url: str) -> None:
    """Nothing else is raised; what is allowed is no option of git, one line, and suggests a name or none."""
    try:
        upstream = parse_upstream(url, allow_local=True)
    except UsageError:
        return
    assert not upstream.url.startswith("-")
    assert "\n" not in upstream.url
    assert upstream.default_name is None or is_repo_name(upstream.default_name)
    assert upstream.scheme in ("https", "http", "git", "file")
    assert same_upstream(upstream.url, upstream.url)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://h:443/a/b", "h"),
        ("http://h:80/a/b", "h"),
        ("git://h:9418/a/b", "h"),
        ("https://h:80/a/b", "h:80"),
        ("https://[::1]/a/b", "[::1]"),
        ("https://[::1]:443/a/b", "[::1]"),
        ("https://[::1]:8443/a/b", "[::1]:8443"),
    ],
)
def test_a_host_is_written_as_in_a_url_without_the_schemes_own_port(url: str, host: str) -> None:
    """So that two ways to write one upstream are one upstream, and a redirect to it is a URL."""
    upstream = parse_upstream(url, allow_local=False)
    assert upstream.host == host
    assert same_upstream(url, f"{upstream.scheme}://{host}{upstream.path}")


# fmt: off
BRANCH_PIECES = [
    "a", "/", ".", "..", "-", "~", "^", ":", "?", "*", "[", "\\", " ", "@", "@{", ".lock", "\t", "\u00e9", "HEAD",
]
# fmt: on
BRANCHES = st.lists(st.sampled_from(BRANCH_PIECES), min_size=1, max_size=6).map("".join)


@given(st.lists(BRANCHES, min_size=20, max_size=20))
@settings(max_examples=15, deadline=None)
def test_a_branch_name_is_what_git_takes_for_one(branches: list[str]) -> None:
    """Never more than git takes: a name that git refuses would be a branch that never is there."""
    for branch in branches:
        if is_branch_name(branch):
            assert git_bytes("check-ref-format", f"refs/heads/{branch}")[0] == 0, branch


@pytest.mark.parametrize("branch", ["main", "feature/x", "v1.2-rc_3", "a@b", "\u00fcn\u00efcode", "x.y"])
def test_usual_branch_names_are_taken(branch: str) -> None:
    """Any that an upstream is likely to have."""
    wanted = wanted_repo("https://h/a/b", name=None, branch=branch, interval=None, allow_local=False)
    assert (wanted.name, wanted.branch) == ("a/b", branch)


@pytest.mark.parametrize("branch", ["", "refs heads", "-x", "a..b", "a.lock", "/a", "a//b", "a/", ".a", "x\ny"])
def test_what_is_no_branch_is_refused(branch: str) -> None:
    """With the way to write one."""
    with pytest.raises(UsageError, match="is not a branch's name"):
        wanted_repo("https://h/a/b", name=None, branch=branch, interval=None, allow_local=False)
