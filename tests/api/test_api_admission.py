"""Who may call what: the admin port by token and scope, the control socket without."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from appliance.core.api.access import Access
from appliance.core.api.declaration import Scope
from appliance.core.events.facts import EventsLost
from appliance.core.store.database import StoreError
from tests.api.server import ApiServer, FakeToken
from tests.api.wire import Response, Wire, request
from tests.serving.conftest import Node, node
from tests.support.gitutil import wait_until

__all__ = ["node"]

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"]
TARGETS = [
    "/v1", "/v1/", "/v1?x=1", "/v1/query", "/v1/query/", "/v1/query?limit=x", "/v1/echo", "/v1/nothing", "/v1/private",
    "/v1/events", "/v1/things/a%2Fb", "/v1/things/%00", "/%76%31/query", "/v1/openapi.json/", "/v1//query", "/v1/%ff",
]  # fmt: skip
SOON = 20.0
"""Seconds within which a token that is revoked ends what lasts for ever without that."""


def admin(server: ApiServer, method: str, target: str, token: str | None = None, body: bytes | None = None) -> Response:
    """The response of the admin port."""
    headers: dict[str, Any] = {} if token is None else {"Authorization": token}
    with Wire(server.admin) as wire:
        return wire.ask(method, target, body, **headers)


def assert_unauthorized(answer: Response, method: str) -> None:
    """401, and how to come by a token."""
    assert answer.status == 401, answer
    assert answer.headers["www-authenticate"] == 'Bearer realm="gitmirror"'
    if method != "HEAD":
        assert "api-token issue" in answer.problem(401, "unauthorized")["hint"]


@pytest.mark.parametrize("target", TARGETS)
def test_without_a_token_nothing_is_told(server: ApiServer, target: str) -> None:
    """Neither which routes there are, nor their methods, nor whether a query is right; 401 to all alike."""
    for method in METHODS:
        assert_unauthorized(admin(server, method, target), method)
        assert_unauthorized(admin(server, method, target, "Bearer wrong"), method)


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Basic eDp5", "Bearer \xff", "t", "Bearer  u", "Bearer t u"]
)
def test_what_is_no_token_is_none(server: ApiServer, value: str) -> None:
    server.tokens["t"] = FakeToken("operate")
    assert_unauthorized(admin(server, "GET", "/v1/query", value), "GET")


def test_only_the_description_is_open(server: ApiServer) -> None:
    """Also with a wrong token, because a generated client sends it always. Its other methods are not."""
    for value in (None, "Bearer wrong"):
        assert admin(server, "GET", "/v1/openapi.json", value).document()["openapi"] == "3.1.0"
        assert admin(server, "HEAD", "/v1/openapi.json", value).status == 200
        assert_unauthorized(admin(server, "POST", "/v1/openapi.json", value), "POST")


def test_scopes(server: ApiServer) -> None:
    """A token that may read does not operate; none does what is the socket's alone."""
    server.tokens |= {"r": FakeToken("read"), "o": FakeToken("operate"), "x": FakeToken("odd")}
    for token in ("r", "o", "x"):
        assert admin(server, "GET", "/v1/query", f"Bearer {token}").status == 200
        assert admin(server, "GET", "/v1/nothing", f"bearer {token}").problem(404, "no-route")
        assert "socket" in admin(server, "POST", "/v1/private", f"Bearer {token}").problem(403, "forbidden")["hint"]
    for token in ("r", "x"):
        problem = admin(server, "POST", "/v1/echo", f"Bearer {token}", b"{}").problem(403, "forbidden")
        assert "--scope operate" in problem["hint"]
    assert admin(server, "POST", "/v1/echo", "Bearer o", b'{"n": 1}').document() == {"n": 1}


def test_a_revoked_token_stops_at_once(server: ApiServer) -> None:
    """Also on a connection that it opened."""
    server.tokens["r"] = FakeToken("read")
    with Wire(server.admin) as wire:
        assert wire.ask("GET", "/v1/query", Authorization="Bearer r").status == 200
        del server.tokens["r"]
        assert_unauthorized(wire.ask("GET", "/v1/query", Authorization="Bearer r"), "GET")


def test_a_broken_database_tells_strangers_nothing(server: ApiServer) -> None:
    """Its error names paths of the node."""
    server.tokens_lost = StoreError("the database /secret/gitmirror.db is missing")
    with Wire(server.admin) as wire:
        answer = wire.say(request("GET", "/v1/query", Authorization="Bearer guess")).response()
    problem = answer.problem(503, "unavailable")
    assert "/secret" not in str(problem) and "cannot be looked up" in problem["detail"]


@pytest.mark.slow
@pytest.mark.parametrize(("target", "is_read"), [("/v1/pieces", True), ("/v1/pieces", False), ("/v1/events", True)])
def test_a_revoked_token_ends_what_is_being_sent(
    server: ApiServer, target: str, is_read: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Also to a reader that does not read. What has an end lacks it, so that nobody takes it for the whole."""
    caplog.set_level(logging.INFO)
    server.tokens |= {"r": FakeToken("read"), "o": FakeToken("read")}
    with Wire(server.admin) as wire, Wire(server.admin) as other:
        for each, token in ((wire, "r"), (other, "o")):
            # Not kept open for a next request, so that its end is the response's.
            each.say(request("GET", target, Authorization=f"Bearer {token}", Connection="close"))
            assert each.head()[0] == 200
            assert each.piece()
        del server.tokens["r"]
        if is_read:
            rest = wire.rest(within=SOON)
            assert rest.endswith(b"0\r\n\r\n") == (target == "/v1/events")
        if target == "/v1/pieces":
            wait_until(lambda: server.seen == ["began", "began", "ended"], timeout=SOON, message="one has ended")
        else:
            wait_until(lambda: server.on_loop(server.watching) == 1, timeout=SOON, message="one has ended")
            server.publish(EventsLost(count=1))
        assert other.piece()
    cut = "its API token was revoked or has expired"
    assert caplog.text.count(cut) == (target == "/v1/pieces")
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING or each.exc_info]


@pytest.mark.slow
def test_a_response_that_begins_after_its_token_was_revoked_is_cut(server: ApiServer) -> None:
    """Also while another of the same token, which was cut, has not ended yet."""
    server.tokens["r"] = FakeToken("read")
    access = Access(server._find, server.stream.wake)

    async def test() -> list[str]:
        lasting, said = await access.admit(Scope.READ, "Bearer r", False), []
        async with lasting(lambda: said.append("first")) as is_allowed:
            del server.tokens["r"]
            while not said:
                await asyncio.sleep(0.01)
            assert not is_allowed()
            async with lasting(lambda: said.append("second")):
                pass
        return said

    assert server.run(test()) == ["first", "second"]


def test_who_opens_the_socket_needs_no_token(server: ApiServer) -> None:
    """A wrong one does no harm."""
    given: list[dict[str, Any]] = [{}, {"Authorization": "Bearer wrong"}]
    for headers in given:
        with Wire(server.path) as wire:
            assert wire.ask("GET", "/v1/query", **headers).status == 200
            assert wire.ask("POST", "/v1/private", **headers).status == 200
            assert wire.ask("GET", "/v1/nothing", **headers).problem(404, "no-route")


def test_a_method_that_a_route_lacks(server: ApiServer) -> None:
    with Wire(server.path) as wire:
        answer = wire.ask("DELETE", "/v1/query")
        assert "it has GET, HEAD" in answer.problem(405, "no-method")["hint"]
        assert answer.headers["allow"] == "GET, HEAD"


def test_the_admin_port_of_a_node_asks_for_a_token(node: Node) -> None:
    """As `serve` composes it. What is no API there needs none, as before."""
    host, _, port = (node.serve.admin_url or "").removeprefix("http://").partition(":")
    with Wire((host, int(port))) as wire:
        for target in ("/v1", "/v1/", "/v1/status", "/v1/nothing", "/v1/repos/acme/widgets"):
            assert_unauthorized(wire.ask("GET", target), "GET")
            assert_unauthorized(wire.ask("GET", target, Authorization="Bearer gmt_wrong"), "GET")
        assert wire.ask("GET", "/v1/openapi.json").status == 200
        assert wire.ask("GET", "/healthz").body == b"ok\n"
        assert wire.ask("GET", "/v1x").status == 404
