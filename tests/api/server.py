"""An API of test operations, on a control socket and on an admin port, on its own loop in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.core.api import schemas
from appliance.core.api.access import Access, Token
from appliance.core.api.application import make_application
from appliance.core.api.declaration import Answer, Call, Operation, Parameter, Reply, Scope
from appliance.core.api.event_routes import EventRoutes
from appliance.core.api.openapi import described
from appliance.core.api.paging import AFTER, LIMIT, paged_by_name
from appliance.core.config.settings import ServeConfig
from appliance.core.daemon.api_socket import ApiSocket, api_handler
from appliance.core.errors import UsageError
from appliance.core.events.facts import Event
from appliance.core.layout import Layout
from appliance.core.observability.event_stream import EventStream
from appliance.core.process.owner import SERVE, claim
from appliance.core.serving.compose import Ports, compose_admin_port
from appliance.core.serving.net.acceptor import Limits
from appliance.core.serving.net.admission import Admission
from appliance.core.serving.net.http_pages import plain_routes
from appliance.core.serving.net.seats import Seats
from appliance.core.serving.net.sockets import listen
from appliance.core.store.database import StoreError
from appliance.core.units import Address


@dataclass(frozen=True)
class FakeToken:
    """A token of a scope."""

    scope: str


class _AdminRoutes:
    """Everything on the admin port but the API."""

    def __init__(self) -> None:
        self.handle = plain_routes({})


ANY = {"type": "object"}
TIMES = Parameter("times", {"type": "integer"}, "How often.")
NAMES = [{"name": f"n{number:03}"} for number in range(250)]


class ApiServer:
    """A control socket and an admin port, owned as `serve` owns them. `seen` is what the operations did."""

    def __init__(self, layout: Layout, path: Path | None = None) -> None:
        self.path = path or layout.control_socket
        self.seen: list[str] = []
        self.tokens: dict[str, FakeToken] = {}
        self.tokens_lost: StoreError | None = None
        self.stream = EventStream()
        self._claim = claim(layout, SERVE, control=self.path)
        self.loop = asyncio.new_event_loop()
        self._gate = asyncio.Event()
        self.complaints: list[str] = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(repr(context)))
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.operations = described([*self._operations(), *EventRoutes(self.stream).operations()])
        self.application = make_application(self.operations, Access(self._find, self.stream.wake))
        self.socket = ApiSocket(self.path, api_handler(self.application, is_operator=True))
        self.run(self.socket.start())
        listening = listen(Address("127.0.0.1", 0), "http")
        self.admin: tuple[str, int] = listening.getsockname()
        config = ServeConfig()
        ports = Ports({}, Admission(Limits.of(config)), Seats(8), Seats(64))
        routes: Any = _AdminRoutes()
        self._admin = compose_admin_port(config, ports, routes, api_handler(self.application, is_operator=False))
        self.run(self._start_admin(listening))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Runs `work` on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def on_loop(self, function: Callable[[], Any]) -> Any:
        """What `function` returns on the server's loop."""

        async def call() -> Any:
            return function()

        return self.run(call())

    def open_gate(self) -> None:
        """Lets the requests to `/v1/gate` pass."""
        self.loop.call_soon_threadsafe(self._gate.set)

    def watching(self) -> int:
        """How many read the events."""
        return self.stream.watchers

    def publish(self, event: Event) -> None:
        """Publishes an event on the server's loop, as `serve` does."""
        self.loop.call_soon_threadsafe(self.stream.publish, event)

    def close(self) -> None:
        """Stops it. Nothing that its loop ran may have failed unseen."""
        self.run(self.socket.stop())
        self.run(self._admin.stop(0))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(60)
        self.loop.close()
        self._claim.release()
        assert not self.complaints, self.complaints

    async def _start_admin(self, listening: Any) -> None:
        self._admin.start([listening])

    async def _find(self, token: str) -> Token | None:
        if self.tokens_lost is not None:
            raise self.tokens_lost
        return self.tokens.get(token)

    def _operations(self) -> list[Operation]:
        interval = schemas.given(
            interval=schemas.INTERVAL, name=schemas.NAME, names=schemas.listed(schemas.NAME), wait=schemas.SWITCH,
            state=schemas.one_of("on", "off"),
        )  # fmt: skip
        answers, text = {200: Answer("It.", ANY)}, {200: Answer("It.", media_type="text/x")}
        query = (Parameter("q", schemas.GIVEN_TEXT, "Text."), Parameter("flag", schemas.SWITCH, "A switch."), LIMIT)
        paths = (
            Operation("POST", "/v1/echo", "echo", "Echo", Scope.OPERATE, self._echo, answers, body=ANY),
            Operation("POST", "/v1/checked", "checked", "Check", Scope.OPERATE, self._echo, answers, body=interval),
            Operation(
                "POST", "/v1/named", "named", "Named", Scope.OPERATE, self._echo, answers,
                body=schemas.given(("url",), url=schemas.GIVEN_TEXT),
            ),
            Operation("GET", "/v1/query", "query", "Query", Scope.READ, self._query, answers, query=query),
            Operation("GET", "/v1/names", "names", "Names", Scope.READ, self._names, answers, query=(LIMIT, AFTER)),
            Operation("GET", "/v1/things/{name}", "thing", "Thing", Scope.READ, self._thing, answers),
            Operation("POST", "/v1/tell", "tell", "Tell", Scope.OPERATE, self._tell, answers, body=ANY, tells=True),
            Operation("POST", "/v1/wait", "wait", "Wait", Scope.OPERATE, self._wait, answers, body=ANY, tells=True),
            Operation("GET", "/v1/wait", "wait-read", "Wait", Scope.READ, self._wait, answers),
            Operation("POST", "/v1/gate", "gate", "Gate", Scope.OPERATE, self._gated, answers, body=ANY),
            Operation("GET", "/v1/stubborn", "stubborn", "Stubborn", Scope.READ, self._stubborn, answers),
            Operation("POST", "/v1/refuse", "refuse", "Refuse", Scope.OPERATE, self._refuse, answers, tells=True),
            Operation("POST", "/v1/break", "break", "Break", Scope.OPERATE, self._break, answers, tells=True),
            Operation("GET", "/v1/text", "text", "Text", Scope.READ, self._text, text, query=(TIMES,)),
            Operation("GET", "/v1/pieces", "pieces", "Pieces", Scope.READ, self._pieces, text,
                      reads_mirror=True),
            Operation("POST", "/v1/private", "private", "Private", Scope.SOCKET, self._echo, answers),
        )  # fmt: skip
        return list(paths)

    async def _echo(self, call: Call) -> Any:
        return dict(call.body)

    async def _query(self, call: Call) -> Any:
        return dict(call.query)

    async def _names(self, call: Call) -> Any:
        return paged_by_name(NAMES, call)

    async def _thing(self, call: Call) -> Any:
        return dict(call.path)

    async def _tell(self, call: Call) -> Any:
        for number in range(call.body["times"]):
            call.tell(f"step {number}")
            await asyncio.sleep(0)
        return None

    async def _wait(self, call: Call) -> Any:
        self.seen.append("began")
        call.tell("waiting")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            raise

    async def _gated(self, call: Call) -> Any:
        self.seen.append("began")
        await self._gate.wait()
        return {"passed": True}

    async def _stubborn(self, call: Call) -> Any:
        self.seen.append("began")
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return {"more": "than a socket holds " * 500_000}

    async def _refuse(self, call: Call) -> Any:
        raise UsageError("no such thing", hint="try another")

    async def _break(self, call: Call) -> Any:
        raise ZeroDivisionError("oh")

    async def _text(self, call: Call) -> Any:
        return Reply("x" * int(call.query["times"]), media_type="text/x")

    async def _pieces(self, call: Call) -> Any:
        return Reply(media_type="text/x", stream=self._endless())

    async def _endless(self) -> AsyncGenerator[bytes, None]:
        self.seen.append("began")
        try:
            while True:
                yield b"x" * 65536
        finally:
            self.seen.append("ended")
