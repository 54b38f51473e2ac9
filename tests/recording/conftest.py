"""A node whose guests record, its table of sessions, and a check that the two agree."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.core.layout import Layout
from appliance.core.models import Turn
from appliance.core.node.state_dir import open_stores
from appliance.core.store.stores import Stores
from tests.conftest import WIDGETS, ServeFactory
from tests.recording.trap import Trap, TrappedNode
from tests.serving.conftest import SETTLED, Node, commit_turn, wait_settled
from tests.support.gitutil import git, git_result, refs
from tests.support.serve import Serve, Value
from tests.support.upstream import HttpUpstream

TURNS = "refs/gitmirror/turns/"
AGENTS = "refs/agents/"
ARCHIVE = "refs/gitmirror/archive/"

_names = itertools.count()


def new_session() -> str:
    """A name that no other test of this process uses."""
    return f"s{next(_names)}"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Node]:
    """A node that the tests of a module share; it refreshes only when told to."""
    base = tmp_path_factory.mktemp("node")
    with HttpUpstream(base / "upstream") as upstream:
        upstream.add(WIDGETS, generated_bare)
        with Serve(base / "state", repos=[upstream.url(WIDGETS)], refresh=SETTLED).start() as serve:
            serve.wait_for_repo(WIDGETS)
            yield Node(serve, upstream)


@pytest.fixture(scope="module")
def trapped(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[TrappedNode]:
    """A node that the tests of this module share; it never shuts down in an orderly way."""
    base = tmp_path_factory.mktemp("trapped")
    trap = Trap.build(base / "trap")
    with HttpUpstream(base / "upstream") as upstream:
        upstream.add(WIDGETS, generated_bare)
        urls = [upstream.url(WIDGETS)]
        with Serve(base / "state", repos=urls, env=trap.environment, refresh=SETTLED).start() as serve:
            serve.wait_for_repo(WIDGETS)
            serve.keep_ports()
            yield TrappedNode(serve, upstream, trap)


@pytest.fixture
def make_node(serve_factory: ServeFactory, upstream: HttpUpstream) -> Callable[..., Node]:
    """Return what makes a node of this test alone, with settings for `[recording]` and an environment."""

    def make(env: dict[str, str] | None = None, **recording: Value) -> Node:
        serve = serve_factory(repos=[upstream.url(WIDGETS)], env=env, refresh=SETTLED, recording=recording).start()
        serve.wait_for_repo(WIDGETS)
        return Node(serve, upstream)

    return make


class Book:
    """The database of a state directory, read beside `serve`. A context manager."""

    def __init__(self, serve: Serve) -> None:
        self.stores: Stores = open_stores(Layout(serve.state), create=False)

    def __enter__(self) -> Book:
        return self

    def __exit__(self, *_: object) -> None:
        self.stores.database.close()

    def session(self, name: str) -> dict[str, Any] | None:
        """A session as the listing has it, or None."""
        return next((row for row in self.stores.sessions.all(WIDGETS) if row["session"] == name), None)

    def turns(self, name: str) -> list[Turn]:
        """Its turns, oldest first."""
        return self.stores.sessions.turns(WIDGETS, name)

    def shift(self, name: str, seconds: float) -> None:
        """Make a session that much older."""
        with self.stores.database.writing() as connection:
            connection.execute(
                """UPDATE sessions SET last_at =
                   strftime('%Y-%m-%dT%H:%M:%f', last_at, ?) || 'Z' WHERE session = ?""",
                [f"-{seconds} seconds", name],
            )


def session_of(node: Node, name: str) -> dict[str, Any] | None:
    """A session as the listing has it, or None."""
    with Book(node.serve) as book:
        return book.session(name)


def turns_of(node: Node, name: str) -> list[Turn]:
    """A session's turns, oldest first."""
    with Book(node.serve) as book:
        return book.turns(name)


def record(guest: Path, session: str, revision: str = "HEAD") -> None:
    """Push a turn as the kit does: forced."""
    git("push", "--quiet", "--force", "origin", f"{revision}:{AGENTS}{session}", cwd=guest)


def record_turn(guest: Path, session: str, text: str) -> str:
    """Commit one more file and record it; return the commit."""
    commit = commit_turn(guest, text)
    record(guest, session)
    return commit


def fetches(node: Node, oid: str, at: Path) -> bool:
    """Whether a guest that has nothing can fetch a commit by its id."""
    git_result("init", "--quiet", str(at))
    return git_result("fetch", "--quiet", "--depth=1", node.url, oid, cwd=at)[0] == 0


def assert_turns_are_kept(node: Node) -> list[dict[str, Any]]:
    """Asserts that every applied push has a turn and a turn ref, and that nothing else has one. Returns the log.

    For a mirror of which no session was ended.
    """
    entries = wait_settled(node.serve)
    applied = {entry["id"]: entry["new"] for entry in entries if entry["outcome"] == "applied"}
    kept = {int(ref.removeprefix(TURNS)): oid for ref, oid in refs(node.mirror).items() if ref.startswith(TURNS)}
    assert kept == applied, "the turns' refs are not what the log says was applied"
    with Book(node.serve) as book:
        booked = {
            turn.id: turn.commit for row in book.stores.sessions.all(WIDGETS) for turn in book.turns(row["session"])
        }
        assert booked == applied, "the book is not what the log says was applied"
        assert book.stores.audit.verify().broken is None
    return entries
