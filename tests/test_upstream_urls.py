"""Which URLs may be followed, and what follows from one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.core.errors import UsageError
from appliance.core.upstream import choose_name, parse_upstream, same_upstream

BAD = [
    ("-oProxyCommand=id", "dash"),
    ("--upload-pack=id", "dash"),
    ("-u:s3cret@example.com/o/r", "dash"),
    ("ext::sh -c id", "remote helpers"),
    ("fd::17", "remote helpers"),
    ("https://bob:s3cret@example.com/o/r", "credential"),
    ("https://s3cret@example.com/o/r", "credential"),
    ("https://bob:s3cret/o/r", "invalid host or port"),
    ("https://bob:s3cret@exa mple.com/o/r", "spaces"),
    ("https://bob:s3cret@example.com/o/r\n", "control"),
    ("https:/bob:s3cret@example.com/o/r", "ssh"),
    ("ssh://git:s3cret@example.com/o/r", "credential"),
    ("git+ssh://example.com/o/r", "ssh"),
    ("git@example.com:o/r.git", "ssh"),
    ("bob:s3cret@example.com/o/r", "ssh"),
    ("host:o/r", "ssh"),
    ("ftp://example.com/o/r", "scheme"),
    ("HTTPS+x://example.com/o/r", "scheme"),
    ("file:///srv/git/o/r", "local upstream"),
    ("file://bob:s3cret@example.com/o/r", "local upstream"),
    ("/srv/git/o/r", "local upstream"),
    ("../o/r", "local upstream"),
    (".", "local upstream"),
    ("o/r", "not a URL"),
    ("", "empty"),
    ("https://example.com/o/r\n--upload-pack=id", "control"),
    ("https://example.com/o/r\0", "control"),
    ("https://example.com\\@evil.example/o/r", "backslashes"),
    ("https://example.com/o/r?token=s3cret", "query"),
    ("https://example.com/o/r#s3cret", "query"),
    ("https://-example.com/o/r", "host"),
    ("https:///o/r", "host"),
    ("https://example.com", "no repository"),
    ("https://example.com//", "no repository"),
    ("https://example.com:99999/o/r", "invalid host or port"),
    ("https://[::1/o/r", "invalid host or port"),
]


@pytest.mark.parametrize(("url", "reason"), BAD, ids=[repr(url) for url, _ in BAD])
def test_a_bad_url_is_refused_with_the_reason(url: str, reason: str) -> None:
    """A usage error, which does not repeat what may be a secret."""
    with pytest.raises(UsageError, match=reason) as caught:
        parse_upstream(url, allow_local=False)
    assert "s3cret" not in caught.value.message + caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("url", "name", "host"),
    [
        ("https://github.com/jomcgi/homelab", "jomcgi/homelab", "github.com"),
        ("https://github.com/jomcgi/homelab.git", "jomcgi/homelab", "github.com"),
        ("https://github.com/jomcgi/homelab/", "jomcgi/homelab", "github.com"),
        ("https://GitLab.example/a/b/c/d.git", "c/d", "gitlab.example"),
        ("http://127.0.0.1:8080/acme/widgets", "acme/widgets", "127.0.0.1:8080"),
        ("git://example.com/acme/widgets.git", "acme/widgets", "example.com"),
        ("https://example.com/one", None, "example.com"),
        ("https://example.com/one.git", None, "example.com"),
        ("https://example.com/~joe/wid gets".replace(" ", "%20"), None, "example.com"),
        ("https://example.com/o/.git", None, "example.com"),
        ("https://example.com/o/..", None, "example.com"),
    ],
)
def test_the_name_comes_from_the_last_two_parts(url: str, name: str | None, host: str) -> None:
    """Without `.git`; what makes no OWNER/REPO needs a name."""
    upstream = parse_upstream(url, allow_local=False)
    assert (upstream.default_name, upstream.host) == (name, host)
    if name is None:
        with pytest.raises(UsageError) as caught:
            choose_name(upstream, None)
        assert "--name OWNER/REPO" in caught.value.hint
    assert choose_name(upstream, "my/own") == "my/own"


BAD_NAMES = ["one", "a/b/c", "../x", "a/..", "./a", ".", "a/b.git", "a b/c", "-", "é/x", "/x", "x/", ""]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_is_refused(name: str) -> None:
    """OWNER/REPO of letters, digits, dots, underscores and dashes."""
    with pytest.raises(UsageError) as caught:
        choose_name(parse_upstream("https://example.com/o/r", allow_local=False), name)
    assert "OWNER/REPO" in caught.value.hint


def test_local_upstreams_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """serve stands elsewhere than who typed the path."""
    monkeypatch.chdir(tmp_path)
    assert parse_upstream("./o/r", allow_local=True).url == str(tmp_path / "o" / "r")
    assert parse_upstream(f"file://{tmp_path}/o/r.git", allow_local=True).url == f"file://{tmp_path}/o/r.git"
    with pytest.raises(UsageError, match="names a host"):
        parse_upstream("file://host/o/r", allow_local=True)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://example.com/o/r", "https://EXAMPLE.com/o/r.git/", True),
        ("https://example.com/o/r", "https://example.com/o/R", False),
        ("https://example.com/o/r", "http://example.com/o/r", False),
        ("https://example.com/o/r", "https://example.com:8443/o/r", False),
        ("/srv/o/r", f"file://{os.sep}srv/o/r.git", True),
    ],
)
def test_urls_that_mean_the_same_upstream(one: str, other: str, same: bool) -> None:
    """However they are written."""
    assert same_upstream(one, other) is same
