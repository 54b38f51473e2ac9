"""The routes of disks: what a request asks of `Disks`, what it answers, and who may ask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.core.daemon.operations import LEASE
from appliance.core.errors import Conflict, GitmirrorError, TryLater
from appliance.core.layout import Layout
from tests.api.disks import OLD, TIP, DiskServer
from tests.api.server import FakeToken
from tests.api.wire import Response, Wire

LEASES = "/v1/repos/acme/widgets/disks"


@pytest.fixture
def node(layout: Layout) -> Iterator[DiskServer]:
    """A node whose disks are a stand-in."""
    made = DiskServer(layout)
    yield made
    made.close()


def ask(node: DiskServer, method: str, path: str, body: Any = None) -> Response:
    """What the operator's socket answers."""
    with Wire(node.path) as wire:
        return wire.ask(method, path, None if body is None else json.dumps(body).encode())


def lease(node: DiskServer, **body: Any) -> dict[str, Any]:
    """The document of a new lease."""
    response = ask(node, "POST", LEASES, body)
    assert response.status == 201, response
    document: dict[str, Any] = response.document()
    return document


def test_a_disk_is_leased_looked_up_and_released(node: DiskServer) -> None:
    """Each answers with the lease's document, and the response to the first says where it is from then on."""
    response = ask(node, "POST", LEASES, {"guest": "vm-7"})
    leased = response.document()
    assert response.status == 201
    assert response.headers["location"] == f"/v1/disks/{leased['id']}"
    assert (leased["repo"], leased["branch"], leased["commit"], leased["guest"]) == (
        "acme/widgets",
        "main",
        TIP,
        "vm-7",
    )
    assert [(drive["role"], drive["readonly"]) for drive in leased["drives"]] == [("tree", True), ("data", True)]
    assert ask(node, "GET", response.headers["location"]).document() == leased
    assert ask(node, "GET", "/v1/disks").document() == {"items": [leased], "next": None}
    assert ask(node, "DELETE", response.headers["location"]).document() == leased
    assert ask(node, "DELETE", response.headers["location"]).document() == leased
    assert "no lease" in ask(node, "GET", response.headers["location"]).problem(404, "not-found")["detail"]
    assert ask(node, "GET", "/v1/disks").document() == {"items": [], "next": None}


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        (None, {}),
        ({"branch": None, "commit": None, "format": None, "single": None}, {}),
        ({"branch": "main"}, {"branch": "main"}),
        ({"commit": OLD}, {"commit": OLD}),
        ({"branch": None, "commit": OLD}, {"commit": OLD}),
        ({"ttl": 90}, {"ttl": 90.0}),
        ({"ttl": "2h"}, {"ttl": 7200.0}),
        ({"single": True}, {"form": "erofs-single"}),
        ({"single": False, "format": "erofs"}, {"form": "erofs"}),
        ({"single": True, "format": "erofs"}, {"form": "erofs-single"}),
        ({"format": "ext4"}, {"form": "ext4"}),
        ({"single": True, "format": "ext4"}, {"form": "ext4"}),
        ({"submodules": None}, {}),
        ({"submodules": False}, {"submodules": False}),
        ({"submodules": True}, {"submodules": True}),
    ],
)
def test_what_a_body_asks_for(node: DiskServer, body: Any, asked: dict[str, Any]) -> None:
    """By default the followed branch, two EROFS drives and a day; null is as good as nothing."""
    default = {"branch": None, "commit": None, "guest": None, "ttl": LEASE, "form": "erofs"}
    assert ask(node, "POST", LEASES, body).status == 201
    assert node.disks.asked == [default | asked]


@pytest.mark.parametrize(
    "body",
    [
        {"branch": "main", "commit": OLD},
        {"branch": ""},
        {"branch": "-x"},
        {"branch": "a..b"},
        {"branch": "a\0b"},
        {"branch": "a\\x00b"},
        {"branch": "a\\b"},
        {"branch": "refs/heads/*"},
        {"branch": "main~1"},
        {"commit": "main"},
        {"commit": OLD[:12]},
        {"commit": f"{OLD}\n"},
        {"guest": ""},
        {"guest": "g" * 256},
        {"ttl": 0},
        {"ttl": "1ms"},
        {"ttl": "soon"},
        {"ttl": 1e9},
        {"ttl": "9999d"},
        {"single": "yes"},
        {"format": "squashfs"},
        {"format": "erofs-single"},
        {"history": "tip"},
        [],
    ],
    ids=repr,
)
def test_a_bad_body_is_refused_before_anything_is_built(node: DiskServer, body: Any) -> None:
    """400, with what to send instead."""
    ask(node, "POST", LEASES, body).problem(400, "invalid")
    assert node.disks.asked == []


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"branch": "main", "commit": OLD}, "branch and commit cannot be combined"),
        ({"ttl": "soon"}, "the body is not valid: ttl must be a duration such as 30s or 2h"),
        ({"format": "squashfs"}, "the body is not valid: format must be one of erofs, ext4"),
    ],
    ids=repr,
)
def test_what_is_wrong_with_a_body_is_said_in_plain_words(node: DiskServer, body: Any, detail: str) -> None:
    """Without patterns of a schema, and without values that only mean that the key may be left out."""
    assert ask(node, "POST", LEASES, body).problem(400, "invalid")["detail"] == detail


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/repos/acme/nothing/disks", {}, "acme/nothing is not registered"),
        (LEASES, {"branch": "other"}, "no branch other"),
        (LEASES, {"commit": TIP}, "no commit 1111"),
    ],
)
def test_what_is_not_there_is_named(node: DiskServer, path: str, body: Any, said: str) -> None:
    with Wire(node.path) as wire:
        response = wire.ask("POST", path, json.dumps(body).encode())
    document = response.document()
    assert (response.status, document["type"]) == (404, "urn:gitmirror:problem:not-found")
    assert said in document["detail"]


@pytest.mark.parametrize("branch", ["b\\xff\\xe9x", "zweig/\u00e4", "a\u200bb"], ids=ascii)
def test_a_branch_of_any_name_can_be_asked_for(node: DiskServer, branch: str) -> None:
    """As the list of refs has it, with bytes that are not UTF-8 escaped."""
    assert ask(node, "POST", LEASES, {"branch": branch}).status == 404
    assert [asked["branch"] for asked in node.disks.asked] == [branch]


@pytest.mark.parametrize(
    ("failure", "status", "name"),
    [
        (TryLater("its mirror is being repacked", retry_after=7), 503, "busy"),
        (Conflict("disks are turned off", hint="set disk_budget"), 409, "conflict"),
        (GitmirrorError("the disk is full", hint="make room"), 422, "failed"),
    ],
)
def test_why_a_disk_cannot_be_had_is_said(node: DiskServer, failure: GitmirrorError, status: int, name: str) -> None:
    """And for what passes by itself, when to ask again."""
    node.disks.failure = failure
    response = ask(node, "POST", LEASES, {})
    assert response.problem(status, name)["detail"] == failure.message
    assert response.headers.get("retry-after") == ("7" if status == 503 else None)


def test_the_list_comes_in_pages_newest_first(node: DiskServer) -> None:
    """Leases that come or go meanwhile neither repeat others nor hide them."""
    made = [lease(node)["id"] for _ in range(5)]
    first = ask(node, "GET", "/v1/disks?limit=2").document()
    assert [each["id"] for each in first["items"]] == [made[4], made[3]]
    lease(node)
    ask(node, "DELETE", f"/v1/disks/{made[3]}")
    second = ask(node, "GET", f"/v1/disks?limit=2&after={first['next']}").document()
    assert [each["id"] for each in second["items"]] == [made[2], made[1]]
    last = ask(node, "GET", f"/v1/disks?limit=2&after={second['next']}").document()
    assert ([each["id"] for each in last["items"]], last["next"]) == ([made[0]], None)
    ask(node, "GET", "/v1/disks?after=nonsense").problem(400, "invalid")


@pytest.mark.parametrize("lease_id", ["nothing", "..", "%2e%2e", "a%2fb", "%0a", "%F0%9F%92%BE", "x" * 2000])
def test_an_id_that_no_lease_has(node: DiskServer, lease_id: str) -> None:
    for method in ("GET", "DELETE"):
        assert ask(node, method, f"/v1/disks/{lease_id}").status == 404


def test_scopes(node: DiskServer) -> None:
    """A token that may read sees leases; one that may operate also makes and ends them."""
    node.tokens |= {"r": FakeToken("read"), "o": FakeToken("operate")}
    leased = lease(node)["id"]

    def status(token: str, method: str, path: str) -> int:
        with Wire(node.admin) as wire:
            return wire.ask(method, path, b"{}", Authorization=f"Bearer {token}").status

    assert [status("r", "GET", path) for path in ("/v1/disks", f"/v1/disks/{leased}")] == [200, 200]
    assert [status("r", "POST", LEASES), status("r", "DELETE", f"/v1/disks/{leased}")] == [403, 403]
    assert [status("o", "POST", LEASES), status("o", "DELETE", f"/v1/disks/{leased}")] == [201, 200]
    assert [status("x", method, "/v1/disks") for method in ("GET", "POST")] == [401, 401]
