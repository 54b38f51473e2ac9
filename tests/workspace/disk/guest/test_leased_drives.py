"""From a lease on the node to a workspace in a guest: the drives are those that `serve` built."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import WIDGETS
from tests.support.generate import add_commit
from tests.support.gitutil import git, wait_until
from tests.workspace.conftest import Node
from tests.workspace.disk.drives_lab import Machine
from tests.workspace.disk.guest.test_kit_disk import assert_whole


def devices(machine: Machine, lease: dict[str, Any]) -> str:
    """Attach the drives of a lease; return the value of GITMIRROR_DRIVES."""
    return ",".join(machine.attach(Path(drive["path"])) for drive in lease["drives"])


@pytest.mark.parametrize(
    "options",
    [
        (),
        pytest.param(("--single",), marks=pytest.mark.slow),
        pytest.param(("--format", "ext4"), marks=pytest.mark.slow),
    ],
)
def test_a_lease_becomes_a_workspace_and_a_turn(
    machine: Machine, own_node: Node, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Leased, attached, hydrated, changed, recorded, and continued from the session on the same drives."""
    lease = own_node.serve.cli_json("disk", WIDGETS, *options)
    guest = machine.guest(own_node.guest(tmp_path / "home"), GITMIRROR_DRIVES=devices(machine, lease))
    assert guest.hydrate("ws").hydrated(via="disk") == lease["commit"] == own_node.tip
    workspace = guest.home / "ws"
    assert_whole(machine, workspace, own_node.tip)
    (machine.path(workspace) / "turn.txt").write_text("a turn\n")
    commit = guest.record("fix", workspace).recorded("fix")
    assert guest.hydrate("again", "session:fix").hydrated(via="disk") == commit
    assert (machine.path(guest.home / "again") / "turn.txt").read_text() == "a turn\n"


@pytest.mark.slow
def test_the_disk_of_the_next_tip_is_there_before_anybody_asks(
    machine: Machine, own_node: Node, tmp_path: Path
) -> None:
    """The old drives still serve, and are brought forward; the new ones need no fetch. A restart changes nothing."""
    serve = own_node.serve
    old = serve.cli_json("disk", WIDGETS)
    new = add_commit(own_node.upstream.path(WIDGETS), "main", {"README.md": "moved\n"})
    own_node.refresh()
    images = Path(old["drives"][0]["path"]).parent
    wait_until(lambda: any(new[:12] in path.name for path in images.glob("*.json")))
    lease = serve.cli_json("disk", WIDGETS)
    assert lease["commit"] == new
    serve.kill()
    serve.start()
    assert [one["id"] for one in serve.cli_json("disks")] == [lease["id"], old["id"]]
    for number, one in enumerate([old, lease]):
        guest = machine.guest(own_node.guest(tmp_path / f"home{number}"), GITMIRROR_DRIVES=devices(machine, one))
        assert guest.hydrate("ws").hydrated(via="disk") == new
        assert (machine.path(guest.home / "ws") / "README.md").read_text() == "moved\n"
    lone = guest.with_(GITMIRROR_HTTP="http://127.0.0.1:9", GITMIRROR_GIT="git://127.0.0.1:9")
    assert lone.hydrate("alone").hydrated(via="disk") == new


@pytest.mark.slow
def test_a_commit_that_upstream_drops_is_leased_to_nobody_from_then_on(own_node: Node) -> None:
    """Requests while upstream is rewritten again and again get commits that it has or had a moment before."""
    serve, bare = own_node.serve, own_node.upstream.path(WIDGETS)
    base = git("rev-parse", "main~1", cwd=bare)
    serve.cli_json("disk", WIDGETS)
    leased: list[dict[str, Any]] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            leased.append(serve.cli_json("disk", WIDGETS))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for number in range(4):
            git("update-ref", "refs/heads/main", base, cwd=bare)
            tip = add_commit(bare, "main", {"dropped.txt": f"secret {number}\n"})
            own_node.refresh()
            before = len(leased)
            wait_until(lambda before=before: len(leased) > before + 1)  # type: ignore[misc]
            assert leased[-1]["commit"] == tip
    finally:
        done.set()
        asking.join()
    last = leased[-1]
    blobs = [Path(drive["path"]).read_bytes() for drive in serve.cli_json("disk", WIDGETS)["drives"]]
    assert not any(f"secret {number}\n".encode() in blob for number in range(3) for blob in blobs)
    assert last["commit"] == git("rev-parse", "main", cwd=bare)
