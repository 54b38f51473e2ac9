"""A state directory from before there were known guests opens, and nothing in it is lost.

`fixtures/state-before-guests.tar.xz` was written by the file of that time: a repository, its snapshot, a leased disk,
two sessions with three turns each (one kept), a refused push, a read token and an API token.
"""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest

from tests.support.gitutil import commit_files, git
from tests.support.serve import Serve
from tests.support.tars import unpack_tar

PACKED = Path(__file__).parent / "fixtures" / "state-before-guests.tar.xz"
HEAD = "94eaa9ea5a9377e32ca527bc457f6ee3f888077bbd7e52e4bf308ce6236d3f53"
EVENTS = 13
NAME = "acme/widgets"


@pytest.fixture
def old(tmp_path: Path) -> Serve:
    """A `serve`, not started, on a copy of the old directory; its upstream is gone."""
    with tarfile.open(PACKED) as archive:
        unpack_tar(archive, tmp_path)
    return Serve(
        tmp_path / "state",
        repos=[{"url": "/tmp/fx/up", "name": NAME}],
        refresh={"allow_local": True, "interval": "60s"},
        recording={"retention": "36500d", "writers": "guests"},
    )


def assert_all_is_there(serve: Serve) -> None:
    """Nobody was known then, and the old events hash as they did."""
    sessions = {each["session"]: each for each in serve.cli_json("sessions")}
    assert {name: (each["turns"], each["guest"]) for name, each in sessions.items()} == {
        "fix-dns": (3, None),
        "tidy-up": (3, None),
    }
    assert sessions["fix-dns"]["kept"]
    assert {row["guest"] for row in serve.cli_json("audit", "--limit", "100") if row["id"] <= EVENTS} == {None}
    assert [token["state"] for token in serve.cli_json("token", "list")] == ["valid"]
    assert [token["name"] for token in serve.cli_json("api-token", "list")] == ["builder"]
    verified = serve.cli("audit", "verify", "--head", HEAD)
    assert int(re.findall(r"(\d+) events", verified.stdout)[0]) >= EVENTS


@pytest.mark.slow
def test_guests_are_made_known_in_it(old: Serve, tmp_path: Path) -> None:
    """With a `serve` and without; one goes on with an old session, and the chain holds over both forms."""
    assert old.cli_json("guests") == []
    assert_all_is_there(old)
    old.cli("guest", "add", "vm-7", "--session", "fix-dns", "--address", "127.0.0.1")
    with old.start():
        assert_all_is_there(old)
        assert [lease["guest"] for lease in old.cli_json("disks")] == ["vm-7"]
        work = tmp_path / "work"
        git("clone", "-q", f"{old.git_url}/{NAME}", str(work))
        git("fetch", "-q", "origin", "refs/agents/fix-dns", cwd=work)
        git("reset", "-q", "--hard", "FETCH_HEAD", cwd=work)
        commit_files(work, {"agent.txt": "fix-dns 4\n"}, "fix-dns turn 4")
        git("push", "-q", "origin", "HEAD:refs/agents/fix-dns", cwd=work)
        session = old.cli_json("session", "show", NAME, "fix-dns")
        assert [turn["guest"] for turn in session["turns"]] == [None, None, None, "vm-7"]
        assert all(turn["notes"] == {} and turn["attachments"] == [] for turn in session["turns"])
    verified = old.cli("audit", "verify", "--head", HEAD)
    assert int(re.findall(r"(\d+) events", verified.stdout)[0]) == EVENTS + 2
