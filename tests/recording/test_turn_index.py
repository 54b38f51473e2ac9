"""What turns are found by is read behind the push, and whatever was missed is caught up."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appliance.core.config.settings import Config
from appliance.core.events.facts import MirrorHealed
from appliance.core.git import turn_contents
from appliance.core.git.mirror_locks import MirrorLocks
from appliance.core.models import Repo, Turn
from appliance.core.node import searching
from appliance.core.node.state_dir import open_stores
from appliance.core.recording import turn_indexer
from appliance.core.recording.turn_indexer import TurnIndexer
from appliance.core.store.audit import Attempt
from appliance.core.store.stores import Stores
from appliance.core.store.turn_index import TurnContents, TurnIndexStore, TurnToIndex
from tests.conftest import WIDGETS
from tests.git.lab import Lab
from tests.recording.conftest import Book, new_session, record, record_turn
from tests.serving.conftest import Node
from tests.support.gitutil import commit_files, git, wait_until
from tests.support.serve import CommandFailed

GONE = "1" * 40


def found(node: Node, *options: str) -> set[str]:
    """The sessions that a search finds."""
    return {row["session"] for row in json.loads(node.serve.here("sessions", *options, "--json"))}


def wait_indexed(node: Node) -> None:
    """Waits until `serve` has read every turn."""
    with Book(node.serve) as book:
        wait_until(lambda: book.stores.turn_index.pending() == 0, message="every turn is indexed")


def forget(stores: Stores) -> None:
    """The state of a database of the version before, or after a kill between a turn and its index."""
    with stores.database.writing() as connection:
        connection.execute("DELETE FROM turn_texts")
        connection.execute("UPDATE turns SET searchable = 0")


# With a serve


@pytest.mark.slow
def test_a_session_is_found_by_what_it_touched_and_said(node: Node, tmp_path: Path) -> None:
    """Soon after the push, by file, directory, message, name and time, on the command line."""
    name, guest = f"Search-{new_session()}", node.guest(tmp_path / "guest")
    commit_files(guest, {"lib/deep/caf\udce9.py": "1", "top.txt": "1"}, "Add a parser\n\nFor RFC 9457 documents.")
    record(guest, name)
    git("mv", "top.txt", "moved.txt", cwd=guest)
    commit_files(guest, {"moved.txt": "1"}, "Rename")
    record(guest, name)
    wait_indexed(node)
    for options in (
        ("--path", "lib/deep"), ("--path", "lib/deep/caf\udce9.py"), ("--path", "top.txt"), ("--path", "moved.txt"),
        ("--grep", "rfc 9457"), ("--grep", "rename"), ("--grep", name.lower()), ("--grep", name, "--path", "lib"),
        ("--grep", name, "--since", "1h"), ("--grep", name, "--repo", WIDGETS),
    ):  # fmt: skip
        assert found(node, *options) == {name}, options
    for options in (
        ("--path", "lib/deep/cafe.py"), ("--path", "deep"), ("--grep", "rfc 9458"), ("--grep", name, "--path", "other"),
        ("--grep", name, "--since", "2100-01-01"),
    ):  # fmt: skip
        assert found(node, *options) == set(), options
    [listed] = [row for row in node.serve.cli_json("sessions") if row["session"] == name]
    assert node.serve.cli_json("sessions", "--grep", name) == [listed]
    assert name in node.serve.cli("sessions", "--path", "lib").stdout
    with pytest.raises(CommandFailed, match="is not a path inside a repository"):
        node.serve.cli("sessions", "--path", "/etc/passwd")


@pytest.mark.slow
def test_what_others_did_upstream_is_not_the_sessions(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """A turn that merged the upstream is compared with its new base, and not with the turn before."""
    node = make_node()
    guest = node.guest(tmp_path / "guest")
    commit_files(guest, {"mine.txt": "1"}, "mine")
    record(guest, "merges")
    work = tmp_path / "work"
    git("clone", "--quiet", str(node.upstream.path(WIDGETS)), str(work))
    theirs = commit_files(work, {"theirs.txt": "1"}, "said upstream")
    git("push", "--quiet", "origin", f"{theirs}:refs/heads/main", cwd=work)
    node.serve.cli("refresh", WIDGETS)
    git("fetch", "--quiet", "origin", "main", cwd=guest)
    git("merge", "--quiet", "-m", "take what is new", "FETCH_HEAD", cwd=guest)
    record(guest, "merges")
    wait_indexed(node)
    assert found(node, "--path", "mine.txt") == found(node, "--grep", "take what is new") == {"merges"}
    assert found(node, "--path", "theirs.txt") == found(node, "--grep", "said upstream") == set()


@pytest.mark.slow
def test_no_push_waits_for_the_index(make_node: Callable[..., Node], tmp_path: Path) -> None:
    """With a git that hangs there, turns are recorded as ever, and a search says that it does not know them."""
    real, trap = shutil.which("git"), tmp_path / "trap"
    trap.mkdir()
    # It waits for the file `go`, without which the test would only end with the deadline.
    (trap / "git").write_text(
        f'#!/bin/sh\nfor word; do [ "$word" = --batch-check="%(objecttype)" ] && '
        f'until [ -e "{trap}/go" ]; do sleep 0.05; done; done\nexec "{real}" "$@"\n'
    )
    (trap / "git").chmod(0o755)
    node = make_node(env={"PATH": f"{trap}{os.pathsep}{os.environ['PATH']}"})
    guest = node.guest(tmp_path / "guest")
    for number in range(3):
        record_turn(guest, "quick", str(number))
    assert [row["turns"] for row in node.serve.cli_json("sessions")] == [3]
    searched = node.serve.cli("sessions", "--path", "turn.txt", "--json")
    assert searched.stdout.strip() == "[]" and "3 turns are not searched" in searched.stderr
    (trap / "go").touch()
    wait_indexed(node)
    assert found(node, "--path", "turn.txt") == {"quick"}


@pytest.mark.slow
def test_turns_that_a_kill_or_an_older_version_left_are_caught_up(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    """By `serve` in the background at its start, and by a command for its search when no `serve` runs."""
    node = make_node()
    record_turn(node.guest(tmp_path / "guest"), "old", "before")
    wait_indexed(node)
    node.serve.terminate()
    with Book(node.serve) as book:
        forget(book.stores)
    searched = node.serve.cli("sessions", "--path", "turn.txt")
    assert "old" in searched.stdout and searched.stderr == ""
    with Book(node.serve) as book:
        assert book.stores.turn_index.pending() == 0
        forget(book.stores)
    node.serve.start()
    wait_indexed(node)
    assert found(node, "--grep", "before") == {"old"}
    node.serve.kill()
    assert found(node, "--path", "turn.txt") == {"old"}


@pytest.mark.slow
def test_nothing_is_left_of_a_session_that_was_dropped_or_purged(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    """Neither in the tables nor in a search."""
    node = make_node()
    guest = node.guest(tmp_path / "guest")
    for name in ("dropped", "purged"):
        record_turn(guest, name, name)
    wait_indexed(node)
    node.serve.cli("session", "drop", WIDGETS, "dropped", "--yes")
    assert found(node, "--path", "turn.txt") == {"purged"}
    node.serve.configure([], refresh={"allow_local": True})
    node.serve.reload()
    wait_until(lambda: "the configuration was read again" in node.serve.log(), message="it is reloaded")
    node.serve.cli("remove-repo", WIDGETS, "--purge", "--yes")
    with Book(node.serve) as book, book.stores.database.reading() as connection:
        assert [connection.table(name).count for name in ("turns", "turn_texts", "turn_paths")] == [0, 0, 0]
        assert not list(connection.query("PRAGMA foreign_key_check"))


# The indexer alone


@dataclass
class Bench:
    """A database and a mirror that no `serve` has, and the indexer over them."""

    state: Path
    lab: Lab = field(init=False)
    stores: Stores = field(init=False)
    left: bool = False

    def __post_init__(self) -> None:
        self.lab = Lab(self.state)
        self.stores = open_stores(self.lab.layout)

    def mirror(self) -> Path:
        """An empty mirror, with a worktree beside it."""
        path = self.lab.layout.mirror(WIDGETS)
        git("init", "--quiet", "--bare", str(path))
        git("clone", "--quiet", str(path), str(self.state / "guest"))
        return path

    def commit(self, name: str) -> str:
        """A commit with one more file, in the mirror."""
        commit = commit_files(self.state / "guest", {name: name}, f"adds {name}")
        git("push", "--quiet", "origin", f"HEAD:refs/agents/{name}", cwd=self.state / "guest")
        return commit

    def turn(self, commit: str, base: str | None = None) -> int:
        """Records it, of the session `s`."""
        attempt = Attempt("p", WIDGETS, "refs/agents/s", "s", None, commit, "accepted", None, "c")
        [number] = self.stores.audit.record_attempts([attempt])
        made = Turn(
            id=number, repo=WIDGETS, session="s", commit=commit, base=base, at=f"2026-01-01T00:00:{number:02}.000Z",
            subject="", commits=1, files_changed=0, insertions=0, deletions=0, client="c", bytes=1,
        )  # fmt: skip
        self.stores.sessions.record(made)
        return number

    def index(self, indexer: TurnIndexer | None = None) -> TurnIndexer:
        """Reads what is missing, by default with an indexer that remembers nothing."""
        indexer = indexer or TurnIndexer(self.stores.turn_index, self.lab.mirror, MirrorLocks())
        self.lab.run(indexer.catch_up())
        return indexer

    def finds(self, path: str) -> bool:
        """Whether the session is found by a path."""
        return bool(self.stores.sessions.find(path=path)[0])

    def leave(self) -> None:
        """Gives the state directory up, for a command that takes it."""
        if not self.left:
            self.lab.close()
            self.left = True

    def close(self) -> None:
        """Ends it all."""
        self.stores.database.close()
        self.leave()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Without a mirror."""
    made = Bench(tmp_path / "state")
    yield made
    made.close()


class Watched(TurnIndexStore):
    """Notes in which order turns are stored, and has one more recorded after the first."""

    order: list[int]
    meanwhile: Callable[[], object]

    def record(self, turn: TurnToIndex, contents: TurnContents) -> bool:
        """Stores it."""
        self.order.append(turn.id)
        if len(self.order) == 1:
            self.meanwhile()
        return super().record(turn, contents)


def test_the_newest_turn_is_read_first(bench: Bench) -> None:
    """Also one that is recorded while all turns of an older database are read, which takes minutes."""
    bench.mirror()
    commits = [bench.commit(f"{number}.txt") for number in range(5)]
    for commit in commits[:4]:
        bench.turn(commit)
    store = Watched(bench.stores.database)
    indexer = TurnIndexer(store, bench.lab.mirror, MirrorLocks())

    def record_another() -> None:
        bench.turn(commits[4])
        indexer.wake()

    store.order, store.meanwhile = [], record_another
    bench.index(indexer)
    assert store.order == [4, 5, 3, 2, 1]


def test_a_turn_whose_commit_is_gone_is_indexed_with_nothing(bench: Bench) -> None:
    """It is not tried again and again, and the others are read; the next one is compared with the base."""
    bench.mirror()
    base, last = bench.commit("base.txt"), bench.commit("last.txt")
    for commit in (GONE, last):
        bench.turn(commit, base)
    bench.index()
    assert bench.stores.turn_index.pending() == 0
    assert bench.finds("last.txt") and not bench.finds("base.txt") and not bench.finds("other")


def test_a_damaged_turn_is_indexed_with_nothing(bench: Bench) -> None:
    """Its commit is there, and its tree is not."""
    mirror = bench.mirror()
    commit = bench.commit("a.txt")
    tree = git("rev-parse", f"{commit}^{{tree}}", cwd=mirror)
    (mirror / "objects" / tree[:2] / tree[2:]).unlink()
    bench.turn(commit)
    bench.index()
    assert bench.stores.turn_index.pending() == 0 and not bench.finds("a.txt")


def test_what_was_damaged_is_read_again_after_a_heal(bench: Bench) -> None:
    """And what was read is not: it may be much."""
    mirror = bench.mirror()
    whole, commit = bench.commit("whole.txt"), bench.commit("a.txt")
    tree = git("rev-parse", f"{commit}^{{tree}}", cwd=mirror)
    hidden = mirror / "objects" / tree[:2] / tree[2:]
    hidden.rename(mirror / "hidden")
    bench.turn(whole)
    bench.turn(commit)
    indexer = bench.index()
    assert bench.finds("whole.txt") and not bench.finds("a.txt")
    (mirror / "hidden").rename(hidden)
    bench.index(indexer)
    assert not bench.finds("a.txt")

    async def heal() -> None:
        repo = Repo(1, WIDGETS, "https://example.com/acme/widgets", None, "cli", None, True, 0.0)
        indexer.healed(MirrorHealed(repo=repo, whole=True, done=(), lost={}, evidence=None, damage=None))
        running = asyncio.create_task(indexer.run())
        async with asyncio.timeout(60):
            while not bench.finds("a.txt"):
                await asyncio.sleep(0.01)
        running.cancel()

    bench.lab.run(heal())
    assert bench.finds("whole.txt") and bench.stores.turn_index.pending() == 0


def test_without_its_mirror_a_turn_waits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror may come back; until then other turns are read, and the waiting one is not asked for at each push."""
    bench.turn(GONE)
    indexer = bench.index()
    bench.mirror()
    bench.turn(bench.commit("b.txt"))
    bench.index(indexer)
    assert [turn.id for turn in bench.stores.turn_index.missing()] == [1]
    monkeypatch.setattr(turn_indexer, "LOOK_EVERY", 0.0)
    indexer = TurnIndexer(bench.stores.turn_index, bench.lab.mirror, MirrorLocks())
    bench.index(indexer)
    assert bench.stores.turn_index.pending() == 0


def put_git(bench: Bench, directory: Path, body: str) -> None:
    """Puts a program before git."""
    directory.mkdir(exist_ok=True)
    (directory / "git").write_text(f'#!/bin/sh\n{body}\nexec "{shutil.which("git")}" "$@"\n')
    (directory / "git").chmod(0o755)
    bench.lab.put_before_git(directory)


def test_what_the_machine_lacks_is_no_damage(bench: Bench, tmp_path: Path) -> None:
    """A turn that cannot be read for want of memory is read later."""
    bench.mirror()
    bench.turn(bench.commit("a.txt"))
    put_git(bench, tmp_path / "failing", 'echo "fatal: Out of memory, malloc failed" >&2; exit 128')
    bench.index()
    assert bench.stores.turn_index.pending() == 1
    put_git(bench, tmp_path / "failing", "")
    bench.index()
    assert bench.stores.turn_index.pending() == 0 and bench.finds("a.txt")


def test_a_turn_that_takes_too_long_may_have_touched_any_path(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest can make a diff as slow as it likes; it is tried once."""
    bench.mirror()
    bench.turn(bench.commit("a.txt"))
    monkeypatch.setattr(turn_contents, "DEADLINE", 0.5)
    put_git(bench, tmp_path / "slow", '[ "$1" = diff-tree ] && exec sleep 60')
    bench.index()
    assert bench.stores.turn_index.pending() == 0 and bench.finds("any/path")


def test_the_index_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound no session is missed: its turns may have touched any path."""
    bench.mirror()
    base = bench.commit("base.txt")
    monkeypatch.setattr(turn_indexer, "MOST_STORED", 1)
    for name in ("a.txt", "b.txt"):
        bench.turn(bench.commit(name), base)
        bench.index()
    assert bench.stores.turn_index.path_count() == 1
    assert bench.finds("a.txt") and bench.finds("b.txt") and bench.finds("z")


def test_a_search_alone_reads_for_a_bounded_time_and_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is counted, and read by the next one."""
    bench.mirror()
    for number in range(3):
        bench.turn(bench.commit(f"{number}.txt"))
    bench.leave()
    told: list[str] = []
    monkeypatch.setattr(searching, "SAID_FROM", 3)
    monkeypatch.setattr(searching, "LONGEST", -1.0)
    assert searching.index_alone(bench.stores, bench.lab.layout, Config(), told.append) == 3
    assert len(told) == 1 and "reading 3 turns" in told[0]
    monkeypatch.setattr(searching, "LONGEST", 20.0)
    assert searching.index_alone(bench.stores, bench.lab.layout, Config(), told.append) == 0
    assert searching.index_alone(bench.stores, bench.lab.layout, Config(), told.append) == 0
    assert len(told) == 2


def test_beside_another_command_a_search_does_without(bench: Bench) -> None:
    """The lab has the state directory: the search says why it reads nothing, and goes on."""
    bench.mirror()
    bench.turn(bench.commit("a.txt"))
    told: list[str] = []
    assert searching.index_alone(bench.stores, bench.lab.layout, Config(), told.append) == 1
    assert "turns cannot be read for this search" in told[0]
