"""The control socket, in process: whatever a line says, it is answered with a document, and nothing is a bug."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.daemon.control_server import ControlServer
from appliance.core.process.control import Tell
from tests.fuzz import grammar
from tests.fuzz.budget import LONGEST_TURN, Budget, Timed
from tests.fuzz.mutation import mutations
from tests.fuzz.test_fuzz_http import Errors, errors

__all__ = ["errors"]

LINES = Budget.of(400)


@dataclass
class Control:
    """A control server whose clients are served one at a time, on its own loop."""

    loop: asyncio.AbstractEventLoop
    path: Path
    complaints: list[str] = field(default_factory=list)
    longest: float = 0.0

    async def start(self) -> ControlServer:
        """Starts it."""
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(repr(context)))

        async def echo(arguments: Mapping[str, Any], tell: Tell) -> Any:
            tell("echo")
            return dict(arguments)

        server = ControlServer(self.path, {"echo": echo})
        serve = server._client

        async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            work = Timed(serve(reader, writer))
            await asyncio.create_task(work)
            self.longest = max(self.longest, work.longest)

        server._client = client  # type: ignore[method-assign]
        await server.start()
        return server

    async def ask(self, line: bytes) -> list[bytes]:
        """What a line is answered."""
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        self.longest = 0.0
        writer.write(line)
        answer = await reader.readline()
        answers = [answer]
        if answer != b'{"watching": true}\n':
            answers += (await reader.read()).splitlines(keepends=True)
        writer.close()
        await asyncio.sleep(0)
        return answers


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    """One for all inputs."""
    loop = asyncio.new_event_loop()
    made = Control(loop, tmp_path_factory.mktemp("c") / "s")
    server = loop.run_until_complete(made.start())
    yield made
    loop.run_until_complete(server.stop())
    loop.close()


def test_lines(control: Control, errors: Errors) -> None:
    """One answer to one line: progress, a result, or an error with words and an exit code."""

    @LINES.settings
    @given(grammar.requests_of(["echo", "watch"], {"text": st.text(), "url": grammar.URLS}), grammar.SEEDS)
    def run(said: bytes, seed: int) -> None:
        for data in mutations(said, seed, LINES.variants):
            errors.found.clear()
            control.complaints.clear()
            line = data.partition(b"\n")[0] + b"\n"
            for attempt in range(3):
                answers = control.loop.run_until_complete(asyncio.wait_for(control.ask(line), 60))
                if control.longest <= LONGEST_TURN:
                    break
                assert attempt < 2, f"the loop stood still for {control.longest * 1000:.0f} ms"
            documents = [json.loads(answer) for answer in answers if answer]
            assert documents, "it was not answered"
            assert all(set(document) <= {"progress", "result", "error", "watching"} for document in documents)
            assert not control.complaints, control.complaints
            assert not errors.found, errors.found

    run()
