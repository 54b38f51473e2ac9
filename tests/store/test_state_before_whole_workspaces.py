"""A state directory from before there were whole workspaces opens, and nothing in it is lost.

`fixtures/state-before-whole-workspaces.tar.xz` was written by the file of that time: two repositories, one of the
config and one of the command line, a session with two turns that have notes, and a known guest.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from appliance.core.layout import Layout
from appliance.core.node.state_dir import open_stores
from appliance.core.store.registry import Wanted
from tests.support.gitutil import git_result
from tests.support.serve import Serve
from tests.support.tars import unpack_tar

PACKED = Path(__file__).parent / "fixtures" / "state-before-whole-workspaces.tar.xz"
HEAD = "274fa7cbad9a012b0df70f9adbf470941d2f24459fb21e778c837d1d313ada0e"
NAMES = {"acme/widgets": "config", "acme/tools": "cli"}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the old directory; its upstream is gone."""
    with tarfile.open(PACKED) as archive:
        unpack_tar(archive, tmp_path)
    return tmp_path / "state"


def test_what_is_there_stays_as_it_is(old: Path) -> None:
    """Its repositories are the operator's, with their health; one that a guest brings stands beside them."""
    stores = open_stores(Layout(old))
    repos = stores.registry.all()
    assert {repo.name: repo.source for repo in repos} == NAMES
    assert all(stores.health.get(repo.id).cloned for repo in repos)
    assert (stores.allowed.uses(), stores.allowed.ending()) == ({}, [])
    [session] = stores.sessions.all()
    assert (session["repo"], session["session"], session["turns"]) == ("acme/widgets", "fix-dns", 2)
    assert not stores.allowed.end(repos[0])
    brought = stores.allowed.add(Wanted("acme/new", "https://github.com/acme/new"), 60.0)
    assert brought is not None and brought.source == "allowed"
    assert stores.allowed.add(Wanted("acme/tools", "https://github.com/acme/tools"), 60.0) is None
    assert {repo.name: repo.source for repo in stores.registry.all()} == {**NAMES, "acme/new": "allowed"}
    assert stores.allowed.end(brought) and stores.allowed.ending() == ["acme/new"]
    stores.registry.add(Wanted("acme/new", "https://github.com/acme/new"))
    assert stores.allowed.ending() == []
    stores.database.close()


@pytest.mark.slow
def test_it_is_served(old: Path) -> None:
    """With its session, its notes, its guest and its log."""
    serve = Serve(
        old,
        repos=[{"url": "/tmp/fx-ww/up.git", "name": "acme/widgets"}],
        refresh={"allow_local": True, "interval": "60s"},
        recording={"retention": "36500d"},
    )
    with serve.start():
        assert {repo["name"]: repo["source"] for repo in serve.cli_json("repos")} == NAMES
        assert [guest["name"] for guest in serve.cli_json("guests")] == ["vm-7"]
        turns = serve.cli_json("session", "show", "acme/widgets", "fix-dns")["turns"]
        assert [(turn["guest"], turn["notes"]) for turn in turns] == [("vm-7", {"task": "DNS-7"})] * 2
        serve.cli("audit", "verify", "--head", HEAD)
        for name in NAMES:
            assert git_result("ls-remote", f"{serve.git_url}/{name}", "HEAD")[1]
