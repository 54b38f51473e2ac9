"""The mirror is cut at every step of every fallback: the guest ends with a right workspace, or an untouched place."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import WIDGETS
from tests.support.gitutil import fsck, git, wait_until
from tests.support.processes import processes_of
from tests.workspace.conftest import BUSYBOX, CURL, GNU_WGET, NOTHING, Guest, Node, shell_argv
from tests.workspace.proxy import Fault, Proxy

TAR = b"workspace.tar"


@dataclass(frozen=True)
class Way:
    """A guest that reaches the mirror by two proxies only."""

    node: Node
    http: Proxy
    git: Proxy
    guest: Guest

    def hydrate(self, name: str, want: str = "", *, via: str, guest: Guest | None = None) -> None:
        """Hydrate; the workspace is right, and came from `via`."""
        workspace = self.guest.home / name
        done = (guest or self.guest).hydrate(workspace, want)
        commit = done.hydrated(via=via)
        assert commit == self.node.tip
        assert git("rev-parse", "HEAD", cwd=workspace) == commit
        assert git("status", "--porcelain", cwd=workspace) == ""
        fsck(workspace)
        assert [path.name for path in workspace.parent.glob(".gitmirror*")] == []
        assert git("config", "remote.origin.url", cwd=workspace) == self.node.upstream.url(WIDGETS)

    def fail(self, place: Path, *, guest: Guest | None = None) -> str:
        """Hydrate, which fails with a reason, and `place` is as it was. Returns stderr."""
        before = list(place.parent.rglob("*"))
        done = (guest or self.guest).hydrate(place)
        assert (done.code, done.out) == (1, ""), done.out
        assert "no workspace of acme/widgets could be fetched" in done.err
        assert list(place.parent.rglob("*")) == before
        return done.err


pytestmark = pytest.mark.slow


@pytest.fixture
def way(node: Node, tmp_path: Path) -> Iterator[Way]:
    """A guest with curl, whose deadline is far longer than anybody waits for it here."""
    http = urlsplit(node.serve.http_url)
    assert http.hostname and http.port
    with Proxy((http.hostname, http.port)) as web, Proxy(node.serve.git_address) as plain:
        guest = node.guest(
            tmp_path / "home",
            tools=CURL,
            GITMIRROR_HTTP=f"http://127.0.0.1:{web.port}",
            GITMIRROR_GIT=f"git://127.0.0.1:{plain.port}",
            GITMIRROR_DEADLINE="1h",
        )
        yield Way(node, web, plain, guest)
        node.upstream.reset()


SNAPSHOT_FAULTS = [
    Fault("refuse"),
    Fault("status", only=TAR, status=404),
    Fault("status", only=TAR, status=500),
    Fault("reset", only=TAR, after=0),
    Fault("reset", only=TAR, after=20_000),
    Fault("end", only=TAR, after=100),
    Fault("end", only=TAR, after=100_000),
    Fault("shorten", only=TAR, after=512),
    Fault("shorten", only=TAR, after=100_000),
]


@pytest.mark.parametrize(
    ("fault", "tools"),
    [
        # All of them with curl, and of two of a kind one with each of the others.
        pytest.param(fault, tools, id=f"{fault.kind}-{fault.status or fault.after}-{name}")
        for number, fault in enumerate(SNAPSHOT_FAULTS)
        for name, tools in {"curl": CURL, "wget": GNU_WGET, "busybox": BUSYBOX}.items()
        if number == 0 or name in ("curl", ("wget", "busybox")[number % 2])
    ],
)
def test_without_a_whole_snapshot_git_on_the_mirror_is_next(
    way: Way, tmp_path: Path, fault: Fault, tools: tuple[str, ...]
) -> None:
    """Refused, 404, 500, reset or ended in the middle, a tar that is cut: no half of it is left as a workspace."""
    way.http.fault = fault
    guest = way.node.guest(tmp_path / "other", tools=tools, shell="busybox", **way.guest.env)
    way.hydrate("ws", via="mirror", guest=guest)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [Fault("hang", only=TAR), Fault("stall", only=TAR, after=20_000)], ids=["hang", "stall"]
)
def test_a_snapshot_that_hangs_is_given_up_in_time(way: Way, fault: Fault) -> None:
    """Half of the deadline at most goes to it: git has its time after that."""
    way.http.fault = fault
    way.hydrate("ws", via="mirror", guest=way.guest.with_(GITMIRROR_DEADLINE=30))


@pytest.mark.parametrize(
    "fault",
    [Fault("refuse"), Fault("reset", after=0), Fault("reset", after=5000), Fault("end", after=5000), Fault("hang")],
    ids=["refuse", "reset", "reset-late", "end", "hang"],
)
def test_without_the_git_port_git_over_http_is_next(way: Way, fault: Fault) -> None:
    """The snapshot is not there and the git port is broken: the mirror's other port serves git too."""
    way.http.fault = Fault("status", only=TAR, status=404)
    way.git.fault = fault
    hangs = fault.kind == "hang"
    way.hydrate("ws", via="mirror", guest=way.guest.with_(GITMIRROR_DEADLINE=30) if hangs else None)
    assert any(b"info/refs" in request for request in way.http.requests)


@pytest.mark.parametrize("fault", [Fault("refuse"), Fault("status", status=500)], ids=["refused", "500"])
def test_without_the_mirror_the_upstream_is_next(way: Way, fault: Fault) -> None:
    """Neither port is of use: the workspace comes from where it came from in the first place."""
    way.http.fault, way.git.fault = fault, Fault("refuse")
    way.hydrate("ws", via="upstream")
    way.hydrate("branch", "main", via="upstream")
    way.hydrate("commit", way.node.tip, via="upstream")


@pytest.mark.slow
def test_a_mirror_that_hangs_as_a_whole_leaves_time_for_the_upstream(way: Way) -> None:
    """Both ports accept and say nothing."""
    way.http.fault = way.git.fault = Fault("hang")
    guest = way.guest.with_(GITMIRROR_DEADLINE=30)
    other = Guest(guest.home, guest.kit, env=guest.env)
    # Both at once, because nearly all of it is waiting; in directories of their own, where each looks for leftovers.
    for name in ("with", "alone"):
        (way.guest.home / name).mkdir()
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(way.hydrate, name, via="upstream", guest=each)
            for name, each in zip(("with/ws", "alone/ws"), (guest, other), strict=True)
        ]
        for run in runs:
            run.result()


@pytest.mark.parametrize("exists", [False, True])
def test_without_anything_the_place_is_untouched(way: Way, exists: bool) -> None:
    """Mirror and upstream are gone: code 1, a reason, and DIR as it was."""
    way.http.fault = way.git.fault = Fault("refuse")
    way.node.upstream.refuse()
    place = way.guest.home / "place" / "ws"
    place.parent.mkdir()
    if exists:
        place.mkdir()
    said = way.fail(place)
    assert way.node.upstream.url(WIDGETS) in said


@pytest.mark.slow
@pytest.mark.parametrize("tools", [CURL, NOTHING], ids=["timeout", "no-timeout"])
def test_the_deadline_holds_when_everything_hangs(way: Way, tmp_path: Path, tools: tuple[str, ...]) -> None:
    """Mirror and upstream accept and say nothing: it ends at the deadline, with `timeout` and without, and so do git
    and its helpers."""
    way.http.fault = way.git.fault = Fault("hang")
    way.node.upstream.everywhere.hang = True
    guest = way.node.guest(tmp_path / "other", tools=tools, **{**way.guest.env, "GITMIRROR_DEADLINE": "6"})
    place = guest.home / "place" / "ws"
    place.parent.mkdir()
    way.fail(place, guest=guest)
    wait_until(lambda: not processes_of(guest.home), message="nothing of the guest runs on")


def test_a_stale_mirror_is_passed_by(way: Way, tmp_path: Path) -> None:
    """A lag over `GITMIRROR_MAX_LAG`, and one that cannot be known: the upstream; below it the snapshot."""
    way.hydrate("fresh", via="snapshot", guest=way.guest.with_(GITMIRROR_MAX_LAG="1h"))
    stale = way.guest.with_(GITMIRROR_MAX_LAG=0)
    way.hydrate("stale", via="upstream", guest=stale)
    blind = Guest(way.guest.home, way.guest.kit, "dash", NOTHING, {**way.guest.env, "GITMIRROR_MAX_LAG": "1h"})
    way.http.fault = Fault("status", only=b"freshness", status=500)
    way.hydrate("unknown", via="upstream", guest=way.guest.with_(GITMIRROR_MAX_LAG="1h"))
    way.hydrate("blind", via="upstream", guest=blind)
    way.node.upstream.refuse()
    way.http.fault = None
    place = way.guest.home / "place" / "ws"
    place.parent.mkdir()
    way.fail(place, guest=stale)


def test_a_push_finds_the_port_that_is_open(way: Way) -> None:
    """Over HTTP when the git port refuses or resets."""
    workspace = way.guest.home / "ws"
    way.hydrate("ws", via="snapshot")
    for number, fault in enumerate((Fault("refuse"), Fault("reset", after=10))):
        way.git.fault = fault
        (workspace / "new.txt").write_text(f"{fault}")
        way.guest.record(f"port{number}", workspace).recorded(f"port{number}")


@pytest.mark.parametrize("shell", ["dash", "busybox sh", "bash --posix"])
def test_a_signal_leaves_nothing_behind(way: Way, shell: str) -> None:
    """After a harness ends the kit with a signal, no process is left and DIR does not exist, not even in part."""
    way.http.fault = Fault("status", only=TAR, status=404)
    way.git.fault = Fault("stall", only=b"git-upload-pack", after=2000)
    argv = [*shell_argv(shell), str(way.guest.kit), "hydrate", WIDGETS, f"{way.guest.home}/ws"]
    process = subprocess.Popen(argv, env=way.guest.environment() | {"PATH": os.environ["PATH"]}, stderr=subprocess.PIPE)
    wait_until(lambda: list(way.guest.home.glob(".gitmirror*")), message="the clone begins")
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert not list(way.guest.home.glob(".gitmirror*")) and not (way.guest.home / "ws").exists()
    wait_until(lambda: not processes_of(way.guest.home), message="nothing of the guest runs on")
