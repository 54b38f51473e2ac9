"""What core tells the view: the whole node quickly, a session's files and diffs, the pulse of serve."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from appliance.cli.main import cli
from appliance.core.config.settings import load_config
from appliance.core.errors import GitmirrorError, UsageError
from appliance.core.layout import Layout
from appliance.core.models import FileChange, Health, Turn
from appliance.core.node.node import Node as StateNode
from appliance.core.node.queries import NodeQueries
from appliance.core.node.sessions import Sessions
from appliance.core.node.state_dir import open_stores
from appliance.core.store.audit import Attempt
from appliance.core.store.registry import Wanted
from tests.conftest import WIDGETS
from tests.support.gitutil import commit_files, git, wait_until
from tests.tui.conftest import Node


def state_node(node: Node) -> StateNode:
    return StateNode(Layout(node.serve.state), load_config(node.serve.config), create=False)


def test_the_overview_is_what_status_tells(node: Node) -> None:
    """State, branch, tip, figures; and the pulse is the rest of status."""
    queries, status = NodeQueries(state_node(node)), node.serve.cli_json("status")
    [view], [repo] = queries.repos(), status["repos"]
    assert (view.repo.name, view.state, view.branch) == (repo["name"], repo["state"], repo["branch"])
    assert (view.health.tip, view.health.refs, view.health.size) == (repo["tip"], repo["refs"], repo["size"])

    def is_the_same() -> bool:
        """Not so while something is measured anew between the two questions."""
        pulse, told = queries.pulse() or {}, node.serve.status()
        return all(pulse[key] == told[key] for key in pulse.keys() & told.keys())

    wait_until(is_the_same, message="the pulse is a part of status")
    pulse = queries.pulse()
    assert pulse is not None and len(pulse.keys() & status.keys()) > 3
    assert pulse["connections"] == {"git": 0, "http": 0, "admin": 0} and pulse["cloning"] == []
    assert "connections" not in status and "repos" not in pulse
    tip = queries.tip(WIDGETS, repo["tip"])
    mirror = node.serve.mirror(WIDGETS)
    assert tip is not None and tip.subject == git("log", "-1", "--format=%s", repo["tip"], cwd=mirror)
    assert queries.tip(WIDGETS, "f" * 40) is None
    heads = git("for-each-ref", "--format=%(refname)", "refs/heads", "refs/tags", cwd=mirror)
    assert {ref.ref for ref in queries.refs(WIDGETS)} == set(heads.splitlines())
    queries.close()


def test_sessions_are_counted_when_they_are_recorded(tmp_path: Path) -> None:
    """Whoever hears of a recording finds it counted, before serve has put the number into the health."""
    stores = open_stores(Layout(tmp_path))
    repo = stores.registry.add(Wanted(WIDGETS, "https://github.com/acme/widgets"))
    stores.registry.add(Wanted("acme/other", "https://github.com/acme/other"))
    at, oid = "2026-01-31T12:00:00.000Z", "1" * 40
    push = Attempt("p1", WIDGETS, "refs/agents/s", "s", None, oid, "accepted", None, "c")
    [attempt] = stores.audit.record_attempts([push])
    stores.sessions.record(Turn(attempt, WIDGETS, "s", oid, None, at, "subject", 1, 1, 1, 0, "c", 10))
    queries = NodeQueries(StateNode(Layout(tmp_path), load_config(None), create=False))
    assert {view.repo.name: view.health.sessions for view in queries.repos()} == {WIDGETS: 1, "acme/other": 0}
    assert stores.health.all().get(repo.id, Health()).sessions == 0
    queries.close()
    stores.database.close()


def test_leases_of_disks_are_counted(tmp_path: Path) -> None:
    """Those that have not ended: by repository, and for the whole node with the bytes that disks take."""
    stores = open_stores(Layout(tmp_path))
    repo = stores.registry.add(Wanted(WIDGETS, "https://github.com/acme/widgets"))
    stores.registry.add(Wanted("acme/other", "https://github.com/acme/other"))
    queries = NodeQueries(StateNode(Layout(tmp_path), load_config(None), create=False))
    assert {view.repo.name: view.leases for view in queries.repos()} == {WIDGETS: 0, "acme/other": 0}
    assert (queries.disk().storage["by"]["disks"], queries.disk().leases) == (0, 0)
    image = Layout(tmp_path).disks / WIDGETS / "1" / "images" / "one.img"
    image.parent.mkdir(parents=True)
    image.write_bytes(os.urandom(8192))
    leases = [
        stores.disk_leases.issue(
            repo, branch="main", commit="1" * 40, form="erofs", generation=1, name=image.name, guest=None, ttl=60,
            of_tip=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    stores.disk_leases.release(leases[0].id)
    assert {view.repo.name: view.leases for view in queries.repos()} == {WIDGETS: 2, "acme/other": 0}
    assert (queries.disk().storage["by"]["disks"], queries.disk().leases) == (image.stat().st_blocks * 512, 2)
    queries.close()
    stores.database.close()


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    """Neither a state directory nor an empty database."""
    bare = StateNode(Layout(tmp_path / "state"), load_config(None), create=False)
    queries = NodeQueries(bare)
    assert queries.pulse() is None
    for look in (queries.repos, queries.disk):
        with pytest.raises(GitmirrorError, match="there is no state directory"):
            look()
    assert Sessions(bare).search() == []
    assert not (tmp_path / "state").exists()


def test_files_of_a_session_whatever_their_names(node: Node) -> None:
    """Renamed, deleted, binary, with brackets, bytes that are no UTF-8; each diff is that of its file alone."""
    guest = node.guest("odd")
    git("mv", "README.md", "READ ME [1].md", cwd=guest)
    odd = os.fsdecode(b"caf\xe9\n.txt")
    commit_files(guest, {"*.py": "x = 1\n", "b.bin": b"\0\1", odd: "odd\n", "src/common/__init__.py": None}, "Odd")
    git("push", "--quiet", "origin", "HEAD:refs/agents/odd-1", cwd=guest)
    sessions = Sessions(state_node(node))
    whole = sessions.compare(WIDGETS, "odd-1")
    files = {change.path: change for change in sessions.files(whole)}
    assert set(files) == {"READ ME [1].md", "*.py", "b.bin", odd, "src/common/__init__.py"}
    assert files["READ ME [1].md"].before == "README.md"
    assert files["b.bin"] == FileChange("b.bin", "b.bin", 0, 0, True)
    text, cut = sessions.file_diff(whole, files["*.py"], 10_000)
    assert text.count("diff --git") == 1 and "+x = 1" in text and not cut
    text, cut = sessions.file_diff(whole, files["READ ME [1].md"], 10_000)
    assert "rename from README.md" in text
    text, cut = sessions.file_diff(whole, files[odd], 20)
    assert len(text) == 20 and cut


def test_a_patch_is_the_whole_change(node: Node, tmp_path: Path) -> None:
    """Binary files too; it is written to a new file only."""
    guest = node.guest("patched")
    commit_files(guest, {"b.bin": bytes(range(256)), "a.txt": "a\n"}, "Patch")
    git("push", "--quiet", "origin", "HEAD:refs/agents/patched-1", cwd=guest)
    sessions, path = Sessions(state_node(node)), tmp_path / "p.patch"
    whole = sessions.compare(WIDGETS, "patched-1")
    assert sessions.export(whole, path) == path.stat().st_size
    clean = node.guest("unpatched")
    git("apply", "--index", str(path), cwd=clean)
    assert git("write-tree", cwd=clean) == git("rev-parse", "HEAD^{tree}", cwd=guest)
    with pytest.raises(UsageError, match="already exists"):
        sessions.export(whole, path)
    with pytest.raises(GitmirrorError, match="cannot be written"):
        sessions.export(whole, tmp_path / "no" / "p.patch")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(GitmirrorError, match="cannot be written"):
            sessions.export(whole, tmp_path / "cut.patch")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "cut.patch").exists(), "half a patch looks like a patch"


def test_without_a_terminal_it_says_what_prints(tmp_path: Path) -> None:
    """And no other command loads Textual."""
    done = CliRunner().invoke(cli, ["--state", str(tmp_path), "tui"])
    assert done.exit_code == 1 and "needs a terminal" in done.output
    program = (
        "import sys, appliance.cli.main, appliance.core.node.node, appliance.core.node.sessions; print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "textual" not in loaded.split()
