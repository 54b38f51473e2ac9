"""Strategies for requests as real clients send them, and a little beyond."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from typing import Any

from hypothesis import strategies as st

from tests.support.pkt import CAPABILITIES, DELIM, EMPTY_PACK, FLUSH, ZERO, pkt


class Said(bytes):
    """Bytes of a request, of which a report of a failure shows the beginning only."""

    def __repr__(self) -> str:
        shown = bytes.__repr__(self[:2000])
        return f"Said({shown}{'...' if len(self) > 2000 else ''}, {len(self)} bytes)"


def _joined(parts: Iterable[bytes]) -> Said:
    return Said(b"".join(parts))


REPO = b"/acme/widgets"
SEEDS = st.integers(0, 2**32 - 1)
"""Of mutations."""
REPEATS = st.sampled_from([1, 1, 1, 1, 2, 3, 30, 500])
"""How often a line comes: mostly once, now and then so often that a cost that it multiplies is seen."""

_LARGEST = 65516
OIDS = st.sampled_from([b"1" * 40, b"0" * 40, b"a" * 64, b"deadbeef" * 5, b"DEADBEEF" * 5, b"1" * 39, b"", b"HEAD"])
REFS = st.sampled_from(
    [
        b"HEAD",
        b"refs/heads/main",
        b"refs/tags/v1",
        b"refs/",
        b"refs/heads/",
        b"refs/agents/",
        b"refs/agents/s1",
        b"",
        b"refs/agents/../x",
        b"refs/agents/a.lock",
        b"refs/agents/" + b"s" * 129,
        b"refs/gitmirror/turns/1",
        b"r\xff\xff",
        b"\xff\xff",
        b"refs/heads/\xc3\xb6",
        b"refs/heads/\x1b[31m",
        b"refs/agents/a\nb",
        b"refs/agents/\xe2\x80\xae",
    ]
)
_VALUES = st.one_of(
    OIDS, REFS, st.sampled_from([b"1", b"0", b"-1", b"4294967296", b"9" * 30, b"1700000000"]), st.binary(max_size=12)
)


def _packet(payload: bytes) -> bytes:
    return pkt(payload[:_LARGEST])


def _line(words: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """A line of a word and, for a word that ends in a space or `=`, a value."""
    return st.tuples(st.sampled_from(words), _VALUES, st.sampled_from([b"\n", b"\n", b""])).map(
        lambda made: made[0] + (made[1] if made[0][-1:] in b" =" else b"") + made[2]
    )


def _lines(words: Sequence[bytes], most: int = 6) -> st.SearchStrategy[bytes]:
    return st.lists(st.tuples(_line(words), REPEATS), max_size=most).map(
        lambda lines: b"".join(_packet(line) * times for line, times in lines)
    )


_V2_CAPABILITIES = (b"agent=", b"object-format=", b"object-format=sha1", b"session-id=", b"server-option=", b"odd")
_LS_REFS = (b"peel", b"symrefs", b"unborn", b"ref-prefix ", b"ref-prefix refs/", b"odd ")
_FETCH = (
    b"want ",
    b"have ",
    b"done",
    b"thin-pack",
    b"no-progress",
    b"include-tag",
    b"ofs-delta",
    b"shallow ",
    b"deepen ",
    b"deepen-relative",
    b"deepen-since ",
    b"deepen-not ",
    b"filter ",
    b"filter blob:none",
    b"filter tree:0",
    b"filter blob:limit=1k",
    b"filter sparse:oid=",
    b"filter combine:blob:none+tree:0",
    b"want-ref ",
    b"sideband-all",
    b"packfile-uris ",
    b"wait-for-done",
)


def v2(tip: bytes, commands: Sequence[bytes] = (b"ls-refs", b"fetch")) -> st.SearchStrategy[bytes]:
    """One to three v2 requests in a row. `tip` is an object that is there."""
    fetch = (*_FETCH, b"want " + tip + b"\n", b"have " + tip + b"\n")
    arguments = st.one_of(_lines(_LS_REFS), _lines(fetch), _lines((*_LS_REFS, *fetch)))
    one = st.tuples(
        st.sampled_from([*commands, *commands, b"object-info", b"bundle-uri", b"\x1b[2J", b""]),
        _lines(_V2_CAPABILITIES, 3),
        st.sampled_from([DELIM, DELIM, DELIM, b"", b"0002"]),
        arguments,
        st.sampled_from([FLUSH, FLUSH, FLUSH, b""]),
    ).map(lambda made: _packet(b"command=" + made[0] + b"\n") + b"".join(made[1:]))
    return st.lists(one, min_size=1, max_size=3).map(_joined)


def v0(tip: bytes) -> st.SearchStrategy[bytes]:
    """A request of protocol v0 or v1, as sent after the list of refs."""
    words = (b"want " + tip, b"want ", b"have ", b"have " + tip, b"shallow ", b"deepen ", b"filter ", b"done")
    first = st.sampled_from([b" side-band-64k ofs-delta agent=x\n", b" multi_ack_detailed no-done\n", b"\n", b"\0x\n"])
    return st.tuples(
        first, _lines(words), st.sampled_from([FLUSH, b""]), _lines(words), st.sampled_from([pkt("done\n"), b""])
    ).map(lambda made: _packet(b"want " + tip + made[0]) + b"".join(made[1:]))


FIRST_PACKETS = st.tuples(
    st.sampled_from(
        [b"git-upload-pack", b"git-upload-pack", b"git-receive-pack", b"git-upload-archive", b"git-x", b""]
    ),
    st.sampled_from(
        [REPO, REPO, REPO + b".git", b"/127.0.0.1/acme/widgets", b"/", b"/../" * 9, b"/\xff", b"/a b", b""]
    ),
    st.sampled_from([b"", b"\n", b"\0host=h\0", b"\0host=h:1\0\0", b"\0HOST=\0", b"\0"]),
    st.lists(
        st.sampled_from([b"version=2", b"version=1", b"version=0", b"version=9", b"", b"x=y:version=1", b"\n"]),
        max_size=3,
    ),
).map(lambda made: b"%s %s%s%s" % (made[0], made[1], made[2], b"".join(b"\0" + extra for extra in made[3]) + b"\0"))
"""Payloads of the first packet of git://."""


def pushes(tip: bytes) -> st.SearchStrategy[bytes]:
    """Ref commands and what follows them."""
    oids = st.one_of(st.just(ZERO.encode()), st.just(tip), OIDS)
    command = st.tuples(oids, oids, REFS, st.sampled_from([b"", b"", b"\n", b"\0push-options\n"])).map(
        lambda made: b"%s %s %s%s" % made
    )
    first = st.sampled_from(
        [CAPABILITIES.encode(), b"report-status", b"side-band report-status-v2 object-format=sha1", b"\xff atomic", b""]
    )
    lines = st.lists(st.tuples(st.one_of(command, _line((b"shallow ", b"push-cert\0", b"odd "))), REPEATS), max_size=4)
    return st.tuples(
        command,
        first,
        lines,
        st.sampled_from([FLUSH, FLUSH, FLUSH, b""]),
        st.sampled_from([EMPTY_PACK, b"", b"PACK", b"PACK\0\0\0\2\xff\xff\xff\xff", b"x" * 40]),
    ).map(
        lambda made: (
            _packet(made[0].rstrip(b"\n") + b"\0" + made[1])
            + b"".join(_packet(line) * times for line, times in made[2])
            + b"".join(made[3:])
        )
    )


_METHODS = st.sampled_from(
    [b"GET", b"GET", b"GET", b"HEAD", b"POST", b"POST", b"PUT", b"OPTIONS", b"CONNECT", b"PRI", b"g\x80"]
)
_TARGETS = st.sampled_from(
    [
        b"/healthz",
        b"/guest.sh",
        b"/",
        b"*",
        b"http://h/healthz",
        b"/acme/widgets/info/refs?service=git-upload-pack",
        b"/acme/widgets/info/refs?service=git-receive-pack",
        b"/acme/widgets/info/refs",
        b"/acme/widgets.git/info/refs?service=x",
        b"/acme/widgets/git-upload-pack",
        b"/acme/widgets/git-upload-pack",
        b"/acme/widgets/git-receive-pack",
        b"/acme/widgets/workspace.tar",
        b"/acme/widgets/workspace.tar?ref=main",
        b"/acme/widgets/workspace.tar?ref=%00%ff..%2f",
        b"/acme/widgets/freshness",
        b"/acme/widgets/freshness?want=" + b"1" * 40,
        b"/acme/widgets/freshness?want=%0a",
        b"/127.0.0.1/acme/gone/info/refs?service=git-upload-pack",
        b"/127.0.0.1/a/%0d%0a/%ff/git-upload-pack",
        b"/%1b%5b2J/info/refs",
        b"/acme/widgets/info/refs?" + b"&a=1" * 30,
        b"/readyz",
        b"/metrics",
        b"/hooks/github",
        b"/acme/widgets/refresh",
        b"/" + b"a/" * 3000 + b"freshness",
        b"/" + b"%e2%80%ae" * 200,
    ]
)
_POSTED = (b"-pack", b"/hooks/github", b"/refresh")
_GIT_TARGETS = st.sampled_from(
    [
        b"/acme/widgets/git-upload-pack",
        b"/acme/widgets/git-receive-pack",
        b"/acme/widgets/info/refs?service=git-upload-pack",
    ]
)
_FINE_HEADERS = (
    b"Git-Protocol: version=2",
    b"Git-Protocol: version=1:version=0",
    b"Expect: 100-continue",
    b"Connection: close",
    b"Connection: upgrade\r\nUpgrade: h2c",
    b"Range: bytes=0-10",
    b"Range: bytes=-5",
    b"Range: bytes=9-1,3-",
    b"Range: bytes=" + b"9" * 18 + b"-",
    b'If-Range: "x"',
    b"If-None-Match: *",
    b"If-None-Match: " + b'"a",' * 2000,
    b"Authorization: Bearer gmt_" + b"a" * 43,
    b"Authorization: Basic eDp5",
    b"Authorization: Basic \xff",
    b"Authorization: Bearer token",
    b"X-GitHub-Event: push",
    b"X-GitHub-Event: \x80[2J",
    b"X-Hub-Signature-256: sha256=00",
    b"X-Hub-Signature-256: \xff",
    b"Content-Encoding: identity",
    b"a:",
    b"X: " + b"y" * 20000,
)
_ODD_HEADERS = (
    b"Git-Protocol: :::\xff",
    b"Content-Encoding: br",
    b"Content-Encoding: ",
    b"Content-Encoding: gzip",
    b"Connection: ,,",
    b"Content-Length: 5",
    b"Content-Length: 6000",
    b"Content-Length: 6000,6000",
    b"Content-Length: -1",
    b"Content-Length: " + b"9" * 20,
    b"Content-Length: " + b"1" * 5000,
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Content-Type: application/json",
    b"Host: again",
    b"bad header",
    b" folded: x",
    b"\xff: x",
    b"X: \0",
    b"X: \x1b[2J",
)
_HEADERS = st.one_of(*[st.sampled_from(_FINE_HEADERS)] * 9, st.sampled_from(_ODD_HEADERS))


def _chunked(data: bytes, size: int) -> bytes:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x;x=y\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\nTrailer: x\r\n\r\n"


@st.composite
def http(draw: st.DrawFn, bodies: st.SearchStrategy[bytes]) -> bytes:
    """One to three HTTP requests on one connection."""
    said = b""
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        target, body = draw(st.one_of(_TARGETS, _GIT_TARGETS)), b""
        method = b"POST" if target.endswith(_POSTED) and draw(st.integers(0, 9)) else draw(_METHODS)
        lines = [
            b"%s %s HTTP/%s" % (method, target, draw(st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0", b"2.0"]))),
            b"Host: h",
        ]
        for header, times in draw(st.lists(st.tuples(_HEADERS, REPEATS), max_size=4)):
            lines += [header] * (times if len(header) < 100 else 1)
        if method == b"POST":
            body = draw(bodies)
            if target.endswith(_POSTED):
                service = target.rpartition(b"/")[2]
                lines.append(b"Content-Type: application/x-%s-request" % service)
            coding = draw(st.sampled_from(["plain", "plain", "gzip", "gzip and more", "two gzips"]))
            if coding != "plain":
                packed = gzip.compress(body, 1, mtime=0)
                more = {"gzip": b"", "gzip and more": b"more" * draw(REPEATS), "two gzips": packed}[coding]
                lines, body = [*lines, b"Content-Encoding: gzip"], packed + more
            framing = draw(st.sampled_from(["length", "length", "chunked", "both", "none"]))
            if framing in ("length", "both"):
                lines.append(b"Content-Length: %d" % len(body))
            if framing in ("chunked", "both"):
                lines.append(b"Transfer-Encoding: chunked")
                body = _chunked(body, draw(st.sampled_from([1, 7, 1000, 65536])))
        said += b"\r\n".join([*lines, b"", b""]) + body
    return Said(said)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["\ud800", "\0", "a" * 2000, "\u202e", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
URLS = st.sampled_from(
    [
        "https://127.0.0.1/acme/widgets.git",
        "git@127.0.0.1:acme/widgets.git",
        "http://[::1/x",
        "http://h:99999/x",
        "://",
        "x" * 3000,
        "ssh://h:port/x",
        "http://\u2100/a/b",
        "git@[::1]:a/b",
        "\ud800://h/a",
        "/",
        "file:///acme/widgets",
        "http://h/%ff%00/\u0130",
    ]
)


def or_any(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what belongs there, now and then any JSON."""
    return st.one_of(strategy, strategy, strategy, _JSON)


WEBHOOKS = or_any(
    st.fixed_dictionaries(
        {},
        optional={
            "ref": or_any(
                st.sampled_from(
                    [
                        "refs/heads/main",
                        "main",
                        "refs/tags/v1",
                        "refs/heads/\ud800",
                        "refs/heads/a..b",
                        "refs/heads/" + "a" * 2000,
                        "",
                        "refs/heads/\x1b",
                    ]
                )
            ),
            "ref_type": or_any(st.sampled_from(["branch", "tag"])),
            "before": or_any(st.sampled_from(["0" * 40, "1" * 40, "x"])),
            "after": or_any(st.sampled_from(["0" * 40, "1" * 40, "f" * 64, "1" * 40 + "\n", ""])),
            "repository": or_any(
                st.fixed_dictionaries(
                    {},
                    optional={
                        "clone_url": or_any(URLS),
                        "ssh_url": or_any(URLS),
                        "url": or_any(URLS),
                        "full_name": or_any(st.sampled_from(["acme/widgets", "ACME/Widgets", "\ud800", "\u0130"])),
                    },
                )
            ),
        },
    )
).map(lambda document: json.dumps(document).encode())
"""Bodies of webhooks."""


_API_NAMES = st.sampled_from(
    ["acme/widgets", "gone/gone", "acme/%00", "%ff/x", "%ed%a0%80/x", "../..", "a%2Fb/c", "a/b%0a", "*/%25", "ö/x", ""]
)
_API_FIELDS = st.sampled_from(
    [
        *("limit=3", "limit=0", "limit=" + "9" * 400, "limit=%D9%A3", "after=a", "after=%00", "state=fresh", "state=x"),
        *("q=widgets", "q=%ff", "q=", "q", "=", "&&", "purge=false", "purge=1", "dance=1", "limit=%", "a=1" * 300),
    ]
)
_API_ROUTES = (
    *(("GET", "/v1/status"), ("GET", "/v1/pulse"), ("GET", "/v1/repos"), ("GET", "/v1/openapi.json")),
    *(("POST", "/v1/repos"), ("POST", "/v1/refresh"), ("GET", "/v1/guest-kit"), ("POST", "/v1/audit/accept-loss")),
    *(("GET", "/v1/repos/{}"), ("PATCH", "/v1/repos/{}"), ("DELETE", "/v1/repos/{}"), ("POST", "/v1/repos/{}/refresh")),
    *(("DELETE", "/v1/repos/{}/sessions/gone"), ("GET", "/v1/repos/{}/refs"), ("GET", "/v1/sessions"), ("GET", "/v1")),
)
_API_CHANGES = (("POST", "/v1/repos"), ("POST", "/v1/refresh"), ("PATCH", "/v1/repos/{}"))
_API_HEADERS = st.sampled_from(
    [
        *("Accept: application/x-ndjson", "Accept: */*;q=nan, ,;", "Authorization: Bearer x", "Last-Event-ID: 7"),
        *("Content-Type: text/plain", "Connection: close", "X: " + "y" * 20000, "Expect: 100-continue"),
    ]
)
API_ARGUMENTS = {
    # No host but this machine, where nobody listens.
    "url": or_any(st.sampled_from(["http://127.0.0.1:1/gone/gone", "file:///gone/gone", "http://[", "\0", "\ud800"])),
    "name": or_any(st.sampled_from(["acme/widgets", "gone/gone", "../../x", "\0", "\ud800", "", "a/b\n"])),
    "repos": or_any(st.lists(st.sampled_from(["acme/widgets", "gone/gone", "\ud800"]), max_size=3)),
    "branch": or_any(st.sampled_from(["main", "\ud800", "-x", "\0"])),
    "interval": or_any(st.sampled_from([1, 0, -1, float("nan"), float("inf"), 10**400])),
    "allow_local": or_any(st.just(False)),
    "wait": st.just(False),
    "enabled": or_any(st.just(True)),
}

_API_KEYS = {
    "/v1/repos": ("url", "name", "branch", "interval", "allow_local", "wait"),
    "/v1/refresh": ("repos",),
    "/v1/repos/{}": ("enabled", "branch", "interval"),
}


@st.composite
def api_requests(draw: st.DrawFn, *, ends: bool = False) -> Said:
    """One to three requests to the API, whole and counted; with `ends`, one after which the connection ends."""
    said = b""
    for _ in range(1 if ends else draw(st.sampled_from([1, 1, 2, 3]))):
        # Mostly a request that gets as far as its body, since what is refused before was seen soon.
        method, route = draw(st.sampled_from([*_API_ROUTES, *_API_CHANGES * 4]))
        method = draw(st.sampled_from([method] * 15 + ["HEAD", "OPTIONS", "PUT"]))
        target = route.format(draw(st.one_of(*[st.just("acme/widgets")] * 5, _API_NAMES)))
        target += draw(st.sampled_from([*[""] * 12, "/", "%0a", "//x"]))
        if method == "GET" or not draw(st.integers(0, 7)):
            target += "?" + "&".join(draw(st.lists(_API_FIELDS, max_size=2)))
        lines = [f"{method} {target} HTTP/1.1", "Host: h", *draw(st.lists(_API_HEADERS, max_size=2, unique=True))]
        lines += ["Connection: close"] if ends else []
        body = b""
        if method in ("POST", "PATCH", "PUT"):
            known = _API_KEYS.get(route, tuple(API_ARGUMENTS))
            fields_of = {key: API_ARGUMENTS[key] for key in known}
            made = draw(or_any(st.fixed_dictionaries({}, optional=fields_of)))
            if ends and route == "/v1/repos" and isinstance(made, dict):
                made["wait"] = False
            body = json.dumps(made).encode()
        if body and draw(st.booleans()):
            said += "\r\n".join([*lines, "Transfer-Encoding: chunked", "", ""]).encode() + _chunked(body, 100)
        else:
            said += "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body
    return Said(said)
