"""Nodes that are one fleet: a `Serve` each, with the same upstream and the same NATS servers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.gitutil import wait_until
from tests.support.nats import NatsCluster
from tests.support.serve import Section, Serve

NODES = ("a", "b", "c")


class TestFleet:
    """So many nodes, named `a`, `b` and `c`; a context manager that ends them. `start` runs them."""

    __test__ = False

    def __init__(self, directory: Path, nats: NatsCluster, nodes: Sequence[str] = NODES, **sections: Section) -> None:
        self.nats = nats
        self.directory = directory
        self._stack = ExitStack()
        self.nodes = {name: self.make(name, **sections) for name in nodes}

    def make(self, name: str, **sections: Any) -> Serve:
        """A node of this fleet that is not started, and ends with it. `sections` are merged with the fleet's own."""
        fleet: dict[str, Any] = {"servers": self.nats.urls, "node": name, "replicas": self.nats.replicas}
        merged: dict[str, Any] = {
            "fleet": fleet | dict(sections.get("fleet", {})),
            "refresh": {"interval": "1h", "stale_after": "1d", "allow_local": True} | dict(sections.get("refresh", {})),
        }
        others = {key: value for key, value in sections.items() if key not in merged}
        return self._stack.enter_context(Serve(self.directory / name, **merged, **others))

    def __getitem__(self, name: str) -> Serve:
        return self.nodes[name]

    def __enter__(self) -> TestFleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(self) -> TestFleet:
        """Starts every node."""
        for serve in self.nodes.values():
            serve.start()
        return self

    def wait_all(self, holds: Callable[[Serve], Any], message: str, timeout: float = 30.0) -> None:
        """Waits until something holds of every node that runs."""
        for name, serve in self.nodes.items():
            if serve.running:
                wait_until(lambda serve=serve: holds(serve), timeout=timeout, message=f"on node {name}: {message}")  # type: ignore[misc]


def wait_connected(serve: Serve) -> None:
    """Waits until a node is connected to the fleet's servers: it is ready before that, and pushes may wait for it."""
    wait_until(lambda: serve.status()["fleet"]["connected"], message="the fleet is there")
