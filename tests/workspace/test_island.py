"""A guest in a network namespace from which nothing but the mirror's two ports can be reached."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import WIDGETS, ServeFactory
from tests.support.gitutil import git, refs
from tests.support.upstream import HttpUpstream
from tests.workspace.conftest import BUSYBOX, CURL, SETTLED, Node
from tests.workspace.web import get


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=60)
    if done.returncode:
        pytest.skip(f"no network namespace can be made here: ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def island() -> Iterator[tuple[str, str]]:
    """The name of a namespace whose only way out is a wire to an address on our side, and that address."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("`ip netns` takes root and iproute2")
    # 100.64.0.0/10 is for such links; the numbers keep parallel runs apart.
    number = os.getpid() % 16000
    name, ours, theirs = f"gm{os.getpid()}", f"gma{number}", f"gmb{number}"
    net = f"100.{64 + number // 256}.{number % 256}"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
        _ip("address", "add", f"{net}.1/30", "dev", ours)
        _ip("link", "set", ours, "up")
        _ip("-n", name, "address", "add", f"{net}.2/30", "dev", theirs)
        _ip("-n", name, "link", "set", theirs, "up")
        yield name, f"{net}.1"
    finally:
        subprocess.run(["ip", "link", "delete", ours], capture_output=True, timeout=60)
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=60)


@pytest.mark.parametrize(("shell", "tools"), [("dash", CURL), ("busybox sh", BUSYBOX)])
@pytest.mark.slow
def test_two_ports_are_enough(
    island: tuple[str, str],
    serve_factory: ServeFactory,
    upstream: HttpUpstream,
    tmp_path: Path,
    shell: str,
    tools: tuple[str, ...],
) -> None:
    """Hydrate, record, a session again and the redirect work; the upstream is out of reach."""
    name, address = island
    serve = serve_factory(
        repos=[upstream.url(WIDGETS)],
        refresh=SETTLED,
        options=["--git", f"{address}:0", "--http", f"{address}:0", "--admin", "127.0.0.1:0"],
    ).start()
    serve.wait_for_repo(WIDGETS)
    node = Node(serve, upstream)
    node.wait_for_snapshot()
    entries = serve.cli("egress").stdout.split()
    assert entries == [urlsplit(serve.git_url).netloc, urlsplit(serve.http_url).netloc]
    guest = node.guest(tmp_path / "home", tools=tools)
    script = f"""
        . '{guest.kit}'
        gitmirror_hydrate --tip {WIDGETS} ws
        echo new >ws/new.txt
        gitmirror_record island ws
        gitmirror_hydrate {WIDGETS} again session:island
        gitmirror_redirect
        git -C ws fetch --quiet --unshallow origin && echo fetched
        timeout 2 git ls-remote '{upstream.url("acme/other")}' 2>/dev/null || echo 'out of reach'
    """
    kit = f"set -eu; cd '{guest.home}'; PATH='{guest.environment()['PATH']}:{os.environ['PATH']}'; {script}"
    done = subprocess.run(
        ["ip", "netns", "exec", name, *shell.split(), "-c", kit],
        env=guest.environment() | {"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    lines = done.stdout.splitlines()
    assert [line.split(" commit=")[0] for line in lines] == [
        "hydrated via=snapshot",
        "recorded ref=refs/agents/island",
        "hydrated via=snapshot",
        "fetched",
        "out of reach",
    ]
    turn = refs(serve.mirror(WIDGETS))["refs/agents/island"]
    assert turn in lines[1] and turn in lines[2]
    assert git("status", "--porcelain", cwd=guest.home / "again") == ""
    assert get(f"{serve.http_url}/healthz").status == 200
