"""Which repository a webhook is about, whatever URL it names it by."""

from __future__ import annotations

import json
from urllib.parse import urlencode

import pytest

from appliance.core.models import Announcement, Repo
from appliance.core.serving.ports.webhook import FORM, Delivery, Finder, Malformed, read_delivery
from appliance.core.upstream import place_of

BY_HTTPS, BY_SSH, ELSEWHERE, LOCAL, OFF = (
    Repo(number, name, url, None, "cli", None, enabled, 0.0)
    for number, (name, url, enabled) in enumerate(
        [
            ("acme/widgets", "https://github.com/Acme/widgets", True),
            ("acme/gears", "ssh://git@git.example:2222/acme/gears.git", True),
            ("other/name", "http://127.0.0.1:8080/acme/widgets", True),
            ("acme/local", "/srv/git/acme/local.git", True),
            ("acme/off", "https://github.com/acme/off", False),
        ],
        1,
    )
)
FINDER = Finder([BY_HTTPS, BY_SSH, ELSEWHERE, LOCAL, OFF])


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://github.com/acme/widgets.git", [BY_HTTPS]),
        ("https://GitHub.com/acme/widgets/", [BY_HTTPS]),
        ("git@github.com:acme/widgets.git", [BY_HTTPS]),
        ("ssh://git@github.com/acme/widgets", [BY_HTTPS]),
        ("git://github.com/acme/widgets.git", [BY_HTTPS]),
        ("https://git.example/acme/gears.git", [BY_SSH]),
        ("git@git.example:acme/gears.git", [BY_SSH]),
        ("http://127.0.0.1:8080/acme/widgets.git", [ELSEWHERE]),
        ("file:///srv/git/acme/local.git", [LOCAL]),
        ("/srv/git/acme/local", [LOCAL]),
        ("https://github.com/acme/off", []),
        ("https://github.com/acme/widgets2", []),
        ("https://github.com.evil.example/acme/widgets", []),
        ("https://[nonsense/acme/widgets", []),
        ("", []),
        ("::", []),
    ],
)
def test_urls_that_lead_to_the_same_repository(url: str, found: list[Repo]) -> None:
    """By any protocol, with and without `.git`; a neighbour's or another host's is none."""
    assert FINDER.find(Delivery((url,))) == found


@pytest.mark.parametrize(
    ("name", "found"),
    [("acme/widgets", [BY_HTTPS, ELSEWHERE]), ("Other/Name", [ELSEWHERE]), ("acme/off", []), ("widgets", []), ("", [])],
)
def test_a_full_name_will_do(name: str, found: list[Repo]) -> None:
    """When no URL is known: the registered name, or the end of the upstream's path."""
    assert FINDER.find(Delivery(("https://unknown.example/x/y",), name)) == found


def test_a_place_has_neither_user_nor_the_schemes_own_port() -> None:
    """A path that only looks like one, and odd ports, do not raise."""
    assert place_of("https://u:p@h.example:443/a/b") == place_of("h.example:a/b")
    assert place_of("https://h:99999999/a") is None
    assert place_of("https://h:x/a") is None


A, B = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    ("event", "facts", "announced"),
    [
        ("push", {"ref": "refs/heads/main", "after": A}, Announcement("refs/heads/main", A)),
        ("push", {"ref": "refs/tags/v1", "after": A}, Announcement("refs/tags/v1", A)),
        ("push", {"ref": "refs/heads/main", "before": B, "after": A}, Announcement("refs/heads/main", A, B)),
        ("push", {"ref": "refs/heads/x", "after": "0" * 40}, Announcement("refs/heads/x", None)),
        ("create", {"ref": "v1", "ref_type": "tag"}, Announcement("refs/tags/v1", "")),
        ("delete", {"ref": "a/b", "ref_type": "branch"}, Announcement("refs/heads/a/b", None)),
        ("create", {"ref": None, "ref_type": "repository"}, None),
        ("push", {"ref": "refs/pull/1/head", "after": A}, None),
        ("push", {"ref": "refs/heads/main"}, None),
        ("push", {"ref": "refs/heads/a b", "after": A}, None),
        ("push", {"ref": "refs/heads/main", "after": A.upper()}, None),
    ],
)
def test_what_a_webhook_announces(event: str, facts: dict[str, object], announced: Announcement | None) -> None:
    """The ref and where it must be, from JSON and from the form alike."""
    body = json.dumps({"repository": {"full_name": "a/b"}, **facts}).encode()
    form = f"{FORM}; charset=utf-8"
    # The last is what `curl -d` sends when nobody says otherwise.
    for kind, sent in (("application/json", body), (form, urlencode({"payload": body}).encode()), (FORM, body)):
        assert read_delivery(event, kind, sent) == Delivery((), "a/b", announced)


def test_a_form_without_payload_is_none() -> None:
    """Nor is one with a thousand fields."""
    for body in (b"", b"x=1", b"&".join(b"x=1" for _ in range(1000))):
        with pytest.raises(Malformed):
            read_delivery("push", FORM, body)
