"""A state directory of the version before opens, and nothing in it is lost.

`fixtures/state-0.1.0.tar.xz` was written by the file of that version: two repositories, one of them disabled, three
sessions each with three or four turns (one dropped, one kept), two read tokens (one revoked), and an audit log that
goes back a year.
"""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest

from tests.support.gitutil import commit_files, git, refs, wait_until
from tests.support.serve import Serve
from tests.support.tars import unpack_tar

PACKED = Path(__file__).parent / "fixtures" / "state-0.1.0.tar.xz"
HEAD = "f1d0961df46d2c011ec60d6086ec4fbee610c4a814b37f361d2bbdbf75d90f3a"
EVENTS = 526
REWRITTEN = 4
"""Turns of tidy-up in acme/secret; the last is an amended commit, so only a turn's own ref holds the third."""


@pytest.fixture
def old(tmp_path: Path) -> Serve:
    """A `serve`, not started, on a copy of the old directory."""
    with tarfile.open(PACKED) as archive:
        unpack_tar(archive, tmp_path)
    return Serve(
        tmp_path / "state",
        refresh={"allow_local": True, "interval": "60s"},
        # The fixture gets older each day.
        recording={"retention": "36500d"},
    )


def assert_all_is_there(serve: Serve) -> None:
    """What the commands tell of it, with a `serve` and without one."""
    repos = {repo["name"]: repo for repo in serve.cli_json("repos")}
    assert {name: repo["enabled"] for name, repo in repos.items()} == {"acme/secret": False, "acme/widgets": True}
    assert repos["acme/secret"]["interval"] == 300
    sessions = {(each["repo"], each["session"]): each for each in serve.cli_json("sessions")}
    turns = {key: each["turns"] for key, each in sessions.items()}
    assert turns == {
        ("acme/secret", "add-search"): 3,
        ("acme/secret", "fix-dns"): 3,
        ("acme/secret", "tidy-up"): REWRITTEN,
        ("acme/widgets", "fix-dns"): 3,
        ("acme/widgets", "tidy-up"): 3,
    }
    states = {token["id"]: token["state"] for token in serve.cli_json("token", "list")}
    assert states == {1: "valid", 2: "revoked"}
    # The chain holds, and still contains what was its head then.
    verified = serve.cli("audit", "verify", "--head", HEAD)
    assert int(re.findall(r"(\d+) events", verified.stdout)[0]) >= EVENTS


@pytest.mark.slow
def test_it_reads_without_a_serve(old: Serve) -> None:
    """Commands alone migrate what they open."""
    assert_all_is_there(old)
    shown = old.cli_json("session", "show", "acme/secret", "tidy-up")
    assert len(shown["turns"]) == REWRITTEN
    diff = old.cli("session", "diff", "acme/secret", "tidy-up", "--turn", "3").stdout
    assert "+tidy-up turn 3" in diff
    assert all(
        each["damage"] is None and each["verified_whole_at"] is None
        for each in old.cli_json("status", codes=(4,))["repos"]
    )
    # Its turns were recorded before there was an index of what they touched and said.
    assert_sessions_are_found(old)
    verified = old.cli_json("verify", "--full")
    assert len(verified) == 2 and all(each["whole"] for each in verified), verified


def test_it_is_served_and_recorded_into(old: Serve, tmp_path: Path) -> None:
    """Its upstreams are out of reach: guests get what the mirror has, and sessions go on where they were."""
    with old.start():
        assert_all_is_there(old)
        waiting = "turns are not searched"
        wait_until(lambda: waiting not in old.cli("sessions", "--path", "src").stderr, message="every turn is indexed")
        assert_sessions_are_found(old)
        guest = old.clone(tmp_path / "guest", "acme/widgets", "--depth=1")
        git("fetch", "-q", "origin", "refs/agents/fix-dns", cwd=guest)
        git("checkout", "-q", "FETCH_HEAD", cwd=guest)
        commit = commit_files(guest, {"more.txt": "more\n"}, "Turn 4")
        git("push", "-q", "origin", "HEAD:refs/agents/fix-dns", cwd=guest)
        [session] = [each for each in old.cli_json("sessions") if (each["repo"], each["session"]) == WIDGETS_FIX_DNS]
        assert (session["turns"], session["tip"]) == (4, commit)
        assert_turn_refs_stand(old)
        old.cli("enable", "acme/secret")
        assert (old.clone(tmp_path / "secret", "acme/secret") / "src" / "a.txt").exists()
    again = old.cli("audit", "verify", "--head", HEAD).stdout
    assert int(re.findall(r"(\d+) events", again)[0]) == EVENTS + 2


WIDGETS_FIX_DNS = ("acme/widgets", "fix-dns")


def assert_sessions_are_found(serve: Serve) -> None:
    """By what their turns touched and said, also a turn that a later one rewrote."""
    for options in (("--path", "new-tidy-up-3.txt"), ("--grep", "TIDY-UP: turn 3")):
        found = {(row["repo"], row["session"]) for row in serve.cli_json("sessions", *options)}
        assert found == {("acme/secret", "tidy-up"), ("acme/widgets", "tidy-up")}, options
    assert len(serve.cli_json("sessions", "--path", "src")) == 5


def assert_turn_refs_stand(serve: Serve) -> None:
    """Every turn that the log knows has its commit, also one that a later turn rewrote."""
    for repo, count in (("acme/widgets", 7), ("acme/secret", 10)):
        held = {name for name in refs(serve.mirror(repo)) if name.startswith("refs/gitmirror/turns/")}
        assert len(held) == count, repo
