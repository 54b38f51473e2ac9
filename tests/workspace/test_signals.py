"""Signals from a harness end everything that the kit started, at once; no run waits for its own watcher."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import WIDGETS
from tests.support.gitutil import git, kill_group, wait_until
from tests.support.processes import processes_of
from tests.workspace.conftest import (
    CURL,
    EVERY_SHELL,
    GNU_WGET,
    NOTHING,
    ROUNDS,
    Guest,
    Node,
    skip_where_the_shell_has_tools,
)
from tests.workspace.proxy import Fault, Proxy

AT_ONCE = 60.0
"""Seconds from the signal to the end of everything. What the kit waits for when it does not end takes far longer."""
QUICKLY = [each if each in ("dash", "busybox") else pytest.param(each, marks=pytest.mark.slow) for each in EVERY_SHELL]
"""All shells, of which the quick run has those that most guests have."""


@pytest.fixture
def ports(node: Node) -> Iterator[tuple[Proxy, Proxy]]:
    """Proxies before the HTTP and the git port, both of which go on very slowly in the middle of what is large."""
    http = urlsplit(node.serve.http_url)
    assert http.hostname and http.port
    with Proxy((http.hostname, http.port)) as web, Proxy(node.serve.git_address) as plain:
        web.fault = Fault("dribble", only=b"workspace.tar", after=60_000)
        plain.fault = Fault("dribble", only=b"git-upload-pack", after=20_000)
        yield web, plain


def guest_of(node: Node, ports: tuple[Proxy, Proxy], home: Path, shell: str, tools: tuple[str, ...]) -> Guest:
    """A guest that reaches the mirror by the two ports only, with a deadline that nobody waits for."""
    web, plain = ports
    addresses = {
        "GITMIRROR_HTTP": f"http://127.0.0.1:{web.port}",
        "GITMIRROR_GIT": f"git://127.0.0.1:{plain.port}",
        "GITMIRROR_DEADLINE": "1h",
    }
    extra = ("printf",) if shell == "mksh" else ()
    return node.guest(home, shell=shell, tools=(*tools, *extra), **addresses)


def end(process: subprocess.Popen[bytes], number: signal.Signals, guest: Guest) -> bytes:
    """Send the signal to the kit alone. Its pipes are closed and its processes are gone in time; returns stderr."""
    try:
        start = time.monotonic()
        process.send_signal(number)
        out, said = process.communicate(timeout=AT_ONCE)
        left = AT_ONCE - (time.monotonic() - start)
        wait_until(lambda: not processes_of(guest.home), timeout=left, message="nothing of the guest runs on")
    finally:
        kill_group(process)
    assert out == b""
    return said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shell", "tools", "exists"),
    [
        # Each shell with each tool, each of them with a DIR that exists and with one that does not.
        pytest.param(shell, tools, (place + number) % 2 == 0, id=f"{shell}-{name}")
        for place, shell in enumerate(EVERY_SHELL)
        for number, (name, tools) in enumerate({"curl": CURL, "wget": GNU_WGET, "git": NOTHING}.items())
    ],
)
def test_term_ends_it_all_at_once(
    node: Node, ports: tuple[Proxy, Proxy], tmp_path: Path, shell: str, tools: tuple[str, ...], exists: bool
) -> None:
    """While a snapshot or a clone stalls: code 1, pipes closed, no process, DIR as it was, and the next one gets it."""
    if tools == NOTHING:
        skip_where_the_shell_has_tools(shell)
    guest = guest_of(node, ports, tmp_path / "home", shell, tools)
    workspace = guest.home / "place" / "ws"
    workspace.mkdir(parents=True) if exists else workspace.parent.mkdir()
    before = sorted(workspace.parent.rglob("*"))
    process = guest.start("hydrate", WIDGETS, str(workspace))
    web, plain = ports
    begun = "ws/.gitmirror/*/.gitmirror.[0-9]*/*" if exists else ".gitmirror.ws/*/.gitmirror.[0-9]*/*"
    wait_until(
        lambda: (
            process.poll() is not None or (list(workspace.parent.glob(begun)) and (web if tools else plain).stalled)
        ),
        timeout=60,
        message="half of a workspace",
    )
    assert process.poll() is None, (process.communicate(), plain.requests)
    said = end(process, signal.SIGTERM, guest)
    assert process.returncode == 1, said
    assert b"ended by a signal" in said
    assert sorted(workspace.parent.rglob("*")) == before
    web.fault = plain.fault = None
    guest.hydrate(workspace).hydrated(via="snapshot" if tools else "mirror")


@pytest.mark.slow
@pytest.mark.parametrize("tools", [CURL, NOTHING], ids=["snapshot", "git"])
@pytest.mark.parametrize("shell", EVERY_SHELL)
def test_what_is_killed_runs_on_for_a_moment_only(
    node: Node, ports: tuple[Proxy, Proxy], tmp_path: Path, shell: str, tools: tuple[str, ...]
) -> None:
    """KILL reaches only the kit; the processes it started notice, end, and close the harness's pipes."""
    if tools == NOTHING:
        skip_where_the_shell_has_tools(shell)
    guest = guest_of(node, ports, tmp_path / "home", shell, tools)
    process = guest.start("hydrate", WIDGETS, str(guest.home / "ws"))
    wait_until(lambda: (ports[0] if tools else ports[1]).stalled, message="it stalls")
    end(process, signal.SIGKILL, guest)


@pytest.mark.parametrize("shell", QUICKLY)
def test_term_ends_a_record_and_loses_nothing(
    node: Node, ports: tuple[Proxy, Proxy], tmp_path: Path, shell: str
) -> None:
    """While the push hangs: the commit is in place, no lock is left, and the next record goes through."""
    web, plain = ports
    guest = guest_of(node, ports, tmp_path / "home", shell, NOTHING)
    workspace = guest.home / "ws"
    web.fault = plain.fault = None
    # A busybox may have wget and tar in its shell, so where the workspace comes from is not said.
    done = guest.hydrate(workspace)
    assert done.code == 0, done.err
    (workspace / "new.txt").write_text("new\n")
    plain.fault = Fault("hang", only=b"git-receive-pack")
    process = guest.start("record", f"ended-{shell}", str(workspace))
    wait_until(lambda: plain.stalled, message="the push hangs")
    end(process, signal.SIGTERM, guest)
    assert process.returncode == 1
    assert not list((workspace / ".git").rglob("*.lock"))
    head = git("rev-parse", "HEAD", cwd=workspace)
    plain.fault = None
    assert guest.record(f"ended-{shell}", workspace).recorded(f"ended-{shell}") == head


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("shell", EVERY_SHELL)
def test_no_run_waits_for_what_watches_it(node: Node, tmp_path: Path, shell: str) -> None:
    """Hydrations by git, whose every step is watched for an hour: none waits for it; pipes close with the kit.

    Commands that end while their watcher is still being started are a hundred more.
    """
    guest = node.guest(tmp_path / "home", shell=shell, tools=("printf",), GITMIRROR_DEADLINE="1h")
    workspace = guest.home / "ws"
    for _ in range(4 * ROUNDS):
        process = guest.start("hydrate", WIDGETS, str(workspace))
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        shutil.rmtree(workspace)
    many = "n=0; while [ $n -lt 100 ]; do gitmirror__bounded 3600 true || exit; n=$((n + 1)); done"
    for _ in range(ROUNDS):
        done = guest.run(f"gitmirror__begin; {many}", timeout=60)
        assert done.code == 0, done.err


@pytest.mark.slow
@pytest.mark.parametrize("shell", QUICKLY)
def test_a_command_over_its_time_ends_with_all_its_helpers(node: Node, tmp_path: Path, shell: str) -> None:
    """The shell that waited for the command goes on at once, while its many helpers are still being ended."""
    guest = node.guest(tmp_path / "home", shell=shell)
    helpers = "for each in $(seq 60); do sleep 300 & done; wait"
    script = f"gitmirror__begin; ! gitmirror__bounded 1 sh -c '{helpers}'"
    assert guest.run(script, timeout=60).code == 0
    wait_until(lambda: not processes_of(guest.home), message="no helper is left, stopped or running")
