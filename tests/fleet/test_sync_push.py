"""`durability = "sync"`: a guest is told of a turn once the fleet has it; otherwise nothing was recorded."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.fleet.test_fleet_out import OutNode, turns_in
from tests.serving.conftest import commit_turn, entry_of
from tests.support.fleet import TestFleet, wait_connected
from tests.support.gitutil import git, refs, wait_until
from tests.support.nats import WHY_NOT, NatsCluster
from tests.support.upstream import HttpUpstream

pytestmark = pytest.mark.slow

REFUSAL = "the fleet did not store it within 3s; nothing was recorded, push again"


@pytest.fixture(scope="module")
def sync(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[OutNode]:
    """A node whose pushes wait for the fleet, for three seconds, and a server that the tests may freeze."""
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    base = tmp_path_factory.mktemp("sync")
    with (
        NatsCluster(base / "nats") as nats,
        HttpUpstream(base / "upstream") as upstream,
        TestFleet(base, nats, ["a"], fleet={"durability": "sync", "sync_timeout": "3s"}) as nodes,
    ):
        upstream.add(WIDGETS, generated_bare)
        serve = nodes["a"].start()
        serve.cli("add-repo", upstream.url(WIDGETS), "--name", WIDGETS)
        serve.keep_ports()
        wait_connected(serve)
        yield OutNode(serve, upstream, nats, "default")


@pytest.fixture
def frozen(sync: OutNode) -> Iterator[None]:
    """The server takes everything and answers nothing."""
    sync.nats.servers[0].freeze()
    try:
        yield
    finally:
        sync.nats.servers[0].thaw()
        sync.nats.wait()
        wait_connected(sync.serve)


def push(out: OutNode, guest: Path, session: str, *, http: bool, version: int) -> subprocess.CompletedProcess[str]:
    """Pushes HEAD over git:// or HTTP."""
    url = f"{out.serve.http_url if http else out.serve.git_url}/{WIDGETS}"
    return subprocess.run(
        ["git", "-c", f"protocol.version={version}", "push", "--force", url, f"HEAD:refs/agents/{session}"],
        cwd=guest, capture_output=True, text=True, check=False, env=out.serve.env,
    )  # fmt: skip


@pytest.mark.parametrize("http", [False, True])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_guest_is_told_once_the_fleet_has_it(sync: OutNode, tmp_path: Path, http: bool, version: int) -> None:
    guest, session = sync.guest(tmp_path / "guest"), f"told-{http}-{version}"
    commit = commit_turn(guest, session)
    done = push(sync, guest, session, http=http, version=version)
    assert done.returncode == 0, done.stderr
    [row] = turns_in(sync.rows(), session)
    assert (row.commit, row.old) == (commit, None)
    wait_until(
        lambda: sync.database(f"SELECT 1 FROM turns WHERE session = '{session}' AND seq IS NOT NULL"),
        timeout=60, message="its place is stored",
    )  # fmt: skip
    assert len(turns_in(sync.rows(), session)) == 1


@pytest.mark.parametrize("http", [False, True])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_new_session_is_withdrawn(sync: OutNode, frozen: None, tmp_path: Path, http: bool, version: int) -> None:
    guest, session = sync.guest(tmp_path / "guest"), f"new-{http}-{version}"
    commit_turn(guest, session)
    done = push(sync, guest, session, http=http, version=version)
    assert done.returncode == 1
    assert f"[remote rejected] HEAD -> refs/agents/{session} ({REFUSAL})" in done.stderr
    assert f"gitmirror: refs/agents/{session}: {REFUSAL}" in done.stderr
    assert f"refs/agents/{session}" not in refs(sync.serve.mirror(WIDGETS))
    entry = entry_of(sync.serve, f"refs/agents/{session}")
    assert (entry["outcome"], entry["reason"]) == ("failed", REFUSAL)
    assert f"refs/gitmirror/turns/{entry['id']}" not in refs(sync.serve.mirror(WIDGETS))


def test_a_session_goes_back_to_its_turn_before_and_on(sync: OutNode, tmp_path: Path) -> None:
    guest = sync.guest(tmp_path / "guest")
    first = commit_turn(guest, "first")
    assert sync.push(guest, "goes-on").returncode == 0
    second = commit_turn(guest, "second")
    sync.nats.servers[0].freeze()
    try:
        assert sync.push(guest, "goes-on").returncode == 1
        assert refs(sync.serve.mirror(WIDGETS))["refs/agents/goes-on"] == first
    finally:
        sync.nats.servers[0].thaw()
        sync.nats.wait()
    wait_until(lambda: sync.push(guest, "goes-on").returncode == 0, message="it is stored")
    assert refs(sync.serve.mirror(WIDGETS))["refs/agents/goes-on"] == second
    found = [row.commit for row in turns_in(sync.rows(), "goes-on")]
    assert found[0] == first and found[-1] == second
    [(turns,)] = sync.database("SELECT count(*) FROM turns WHERE session = 'goes-on' AND away = 0")
    assert turns == 2
    assert sync.serve.cli("audit", "verify").returncode == 0


def test_the_kit_passes_the_reason_on(sync: OutNode, frozen: None, tmp_path: Path) -> None:
    guest = sync.guest(tmp_path / "guest")
    (guest / "new.txt").write_text("new\n")
    kit = tmp_path / "guest.sh"
    kit.write_text(sync.serve.cli("guest-kit").stdout)
    environment = sync.serve.env | {
        "GITMIRROR_GIT": str(sync.serve.git_url), "GITMIRROR_HTTP": str(sync.serve.http_url),
        "GITMIRROR_UPSTREAM": sync.upstream.url(WIDGETS), "GITMIRROR_DEADLINE": "20",
    }  # fmt: skip
    git("remote", "set-url", "origin", sync.upstream.url(WIDGETS), cwd=guest)
    done = subprocess.run(
        ["sh", str(kit), "record", "kit-1", str(guest)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 1
    assert REFUSAL in done.stderr


def test_pushes_of_other_sessions_and_fetches_go_on(sync: OutNode, frozen: None, tmp_path: Path) -> None:
    """While pushes wait, the node clones for others: no lock and no slot is held."""
    guests = [sync.guest(tmp_path / f"guest{number}") for number in range(3)]
    for number, guest in enumerate(guests):
        commit_turn(guest, f"waits {number}")
    pushes = [
        subprocess.Popen(
            ["git", "push", "-q", "origin", f"HEAD:refs/agents/w{number}"], cwd=guest, env=sync.serve.env,
            stderr=subprocess.PIPE,
        )
        for number, guest in enumerate(guests)
    ]  # fmt: skip
    wait_until(
        lambda: all(f"refs/agents/w{number}" in refs(sync.serve.mirror(WIDGETS)) for number in range(3)),
        timeout=60, message="the refs moved",
    )  # fmt: skip
    sync.serve.clone(tmp_path / "while", WIDGETS)
    for each in pushes:
        each.communicate(timeout=60)
        assert each.returncode == 1
