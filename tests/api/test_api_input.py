"""What a request may say: queries, paths and bodies that are wrong are refused, and the field is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.core.api.paging import since
from appliance.core.api.parsing import LARGEST_BODY, MOST_FIELDS
from appliance.core.api.problem import Problem
from tests.api.server import NAMES, ApiServer
from tests.api.wire import Response, Wire


def get(server: ApiServer, target: str) -> Response:
    """The response on the socket."""
    with Wire(server.path) as wire:
        return wire.ask("GET", target)


def post(server: ApiServer, body: bytes, target: str = "/v1/checked") -> Response:
    """The response on the socket."""
    with Wire(server.path) as wire:
        return wire.ask("POST", target, body)


def refused(answer: Response, name: str = "") -> None:
    """400, with a hint, and the field is named."""
    problem = answer.problem(400, "invalid")
    assert name in problem["detail"] + problem["hint"], problem


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("limt=3", "limt"),
        ("limit=3&limit=4", "limit"),
        ("limit=3&limit=3", "limit"),
        ("limit", "limit"),
        ("limit=", "limit"),
        ("limit=x", "limit"),
        ("limit=1.0", "limit"),
        ("limit=-1", "limit"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=%2B5", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("limit=%D9%A3", "limit"),
        ("flag=1", "flag"),
        ("flag=True", "flag"),
        ("q=", "q"),
        ("q=%00", "q"),
        ("q=%ff", "q"),
        ("q=%ed%a0%80", "q"),
        ("q=" + "x" * 4097, "q"),
        ("%ff=1", "udcff"),
        ("=1", "''"),
        ("&".join(f"a{n}=1" for n in range(MOST_FIELDS + 1)), str(MOST_FIELDS)),
        ("&".join(["q=1"] * 5000), str(MOST_FIELDS)),
    ],
    ids=lambda value: value[:16],
)
def test_a_query_that_is_wrong(server: ApiServer, query: str, name: str) -> None:
    """A parameter that is given twice has no one value, and bytes that are no UTF-8 no text."""
    refused(get(server, f"/v1/query?{query}"), name)


def test_a_query_that_is_right(server: ApiServer) -> None:
    """Escapes, plus signs and empty parts as any form sends them."""
    query = "%71=a%2Bb+%C3%B6%26&&flag=true&limit=20&"
    assert get(server, f"/v1/query?{query}").document() == {"q": "a+b ö&", "flag": True, "limit": 20}
    assert get(server, "/v1/query?").document() == {}


@pytest.mark.parametrize("target", ["/v1/things/%00", "/v1/things/a%00b", "/v1/things/%ff", "/v1/things/%ed%a0%80"])
def test_a_path_that_is_no_text(server: ApiServer, target: str) -> None:
    """SQLite and file systems would raise an error that is a defect of `serve`."""
    refused(get(server, target), "name")


@pytest.mark.parametrize(
    "target", ["/v1/query/", "/v1/query%0A", "/v1//query", "/v1/things/", "/v1/things/a%2Fb", "/v1"]
)
def test_paths_are_exact(server: ApiServer, target: str) -> None:
    """No redirect, which names a host that the client made up, and no other spelling of a route."""
    get(server, target).problem(404, "no-route")


@pytest.mark.parametrize(("given", "seconds"), [(b"1.5", 1.5), (b'"5m"', 300.0), (b'"90s"', 90.0), (b'"2h"', 7200.0)])
def test_a_duration_is_a_number_or_as_in_the_configuration(server: ApiServer, given: bytes, seconds: float) -> None:
    assert post(server, b'{"interval": %s}' % given).document() == {"interval": seconds}


def test_since_takes_a_time_or_a_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the commands do; what the database compares is RFC 3339 in UTC."""
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    read = since("those").read
    assert read("2h") == "2027-01-15T06:00:00.000Z"
    assert read("2026-01-31T12:00:00+02:00") == "2026-01-31T10:00:00.000Z"
    assert read("2026-01-31") == "2026-01-31T00:00:00.000Z"
    for wrong in ("yesterday", "2026-02-30", "99999999999999d", "0001-01-01T00:00:00+23:59", "-2h"):
        with pytest.raises(Problem, match="since"):
            read(wrong)


def test_names_in_paths_are_decoded_once(server: ApiServer) -> None:
    assert get(server, "/v1/things/%C3%B6%2541%20+").document() == {"name": "ö%41 +"}


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"[]", "object"),
        (b"7", "object"),
        (b'"interval"', "object"),
        (b"null", "object"),
        (b"{half", "JSON"),
        (b"\xff\xff", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"a":' * 50_000, "JSON"),
        (b'{"interval": ' + b"1" * 5000 + b"}", "JSON"),
        (b'{"interval": NaN}', "NaN"),
        (b'{"interval": Infinity}', "Infinity"),
        (b'{"interval": -Infinity}', "Infinity"),
        (b'{"interval": 1e400}', "interval"),
        (b'{"interval": ' + b"1" * 400 + b"}", "interval"),
        (b'{"interval": 0}', "interval"),
        (b'{"interval": "5 m"}', "interval"),
        (b'{"interval": "0s"}', "interval"),
        (b'{"interval": "250ms"}', "interval"),
        (b'{"interval": 0.5}', "interval"),
        (b'{"interval": "999999999999d"}', "interval"),
        (b'{"interval": true}', "interval"),
        (b'{"interval": [1]}', "interval"),
        (b'{"interval": 1, "interval": 2}', "interval"),
        (b'{"name": ""}', "name"),
        (b'{"name": "a\\u0000b"}', "name"),
        (b'{"name": "\\ud800"}', "name"),
        (b'{"name": "\xed\xa0\x80"}', "name"),
        (b'{"name": 7}', "name"),
        (b'{"name": "' + b"x" * 256 + b'"}', "name"),
        (b'{"names": ["a", "\\udfff"]}', "names"),
        (b'{"names": ["a", 1]}', "names[1]"),
        (b'{"names": "a"}', "names"),
        (b'{"wait": "true"}', "wait"),
        (b'{"wait": 1}', "wait"),
        (b'{"state": "no"}', "state"),
        (b'{"nmae": "x"}', "nmae"),
        (b'{"\\ud800": "x"}', "ud800"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_a_body_that_is_wrong(server: ApiServer, body: bytes, name: str) -> None:
    """Python's JSON takes more than JSON: NaN, half a surrogate pair, one key twice."""
    refused(post(server, body), name)


def test_a_key_that_is_missing_is_named(server: ApiServer) -> None:
    for body in (b"{}", b"", b'{"url": null}'):
        refused(post(server, body, "/v1/named"), "url" if body else "JSON")


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"interval": 1.5, "name": "ö \U0001f600\n", "names": ["a", "b"], "wait": False, "state": "on"},
        {"interval": 999_999_999},
    ],
    ids=str,
)
def test_a_body_that_is_right(server: ApiServer, document: dict[str, Any]) -> None:
    assert post(server, json.dumps(document).encode()).document() == document
    assert post(server, json.dumps(document, ensure_ascii=False).encode()).document() == document


def test_null_means_left_out(server: ApiServer) -> None:
    """A client that knows no value need not leave the key out. No body means that nothing is given."""
    nothing = dict.fromkeys(("interval", "name", "names", "wait", "state"))
    assert post(server, json.dumps(nothing).encode()).document() == {}
    assert post(server, b"").document() == {}


def test_a_body_where_none_is_wanted(server: ApiServer) -> None:
    """It is ignored, whatever it says, and refused only for its size, with a status that the description has."""
    with Wire(server.path) as wire:
        assert wire.ask("GET", "/v1/query?limit=1", b"{half").document() == {"limit": 1}
        assert wire.ask("POST", "/v1/private", b"[]").document() == {}
        refused(wire.ask("GET", "/v1/query", b"x" * (LARGEST_BODY + 1)), "body")
        assert wire.ask("GET", "/v1/query?limit=1").document() == {"limit": 1}


def test_pages(server: ApiServer) -> None:
    """Each item once, by any size of page; a cursor need not be the name of an item."""
    for limit in (1, 7, 249, 250, 251, 1000):
        found: list[Any] = []
        after = ""
        while True:
            page = get(server, f"/v1/names?limit={limit}{after}").document()
            assert len(page["items"]) <= limit
            found += page["items"]
            if page["next"] is None:
                break
            after = f"&after={page['next']}"
        assert found == NAMES
    assert len(get(server, "/v1/names").document()["items"]) == 100
    assert get(server, "/v1/names?after=n2480").document() == {"items": [{"name": "n249"}], "next": None}
    assert get(server, "/v1/names?after=z").document() == {"items": [], "next": None}
