"""The example of docs/fleet.md, as it stands there: certificates, NATS servers, permissions, and settings."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from pathlib import Path

import nats
import nats.errors
import pytest

from appliance.core.config.settings import load_config
from appliance.core.fleet.names import FleetNames
from tests.support.gitutil import run_process
from tests.support.nats import NATS_SERVER, WHY_NOT, NatsServer
from tests.support.serve import ROOT

PAGE = (ROOT / "docs" / "fleet.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
NODES = ("node-1", "node-2", "node-3")
NAMES = FleetNames("default")

needs_nats = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "nats-server is there")


def block(kind: str, having: str) -> str:
    """The one block of a kind that has a text."""
    [found] = [text for each, text in BLOCKS if each == kind and having in text]
    return found


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the page's commands for certificates and users were given."""
    place = tmp_path_factory.mktemp("deployed")
    (place / "node.template").write_text(block("conf", "PASSWORD"))
    for having in ("openssl req -x509", "users: ["):
        done = run_process(["sh", "-euc", block("sh", having)], cwd=place, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
    return place


def config_of(node: str, place: Path) -> Path:
    """The server's config of a node, with the directory for /etc/nats and /var/lib/nats."""
    text = block("conf", "server_name").replace('server_name: "node-1"', f'server_name: "{node}"')
    text = text.replace("/etc/nats/cert.pem", f"{place}/{node}.pem").replace("/etc/nats/key.pem", f"{place}/{node}.key")
    # NATS takes the path of an include to be below the directory of the file.
    text = text.replace('include "nats/', 'include "')
    path = place / f"{node}.conf"
    path.write_text(text.replace("/etc/nats/", f"{place}/").replace("/var/lib/nats", str(place / f"{node}.store")))
    return path


@pytest.mark.slow
@needs_nats
@pytest.mark.parametrize("node", NODES)
def test_the_servers_take_their_config(deployed: Path, node: str) -> None:
    """As `nats-server -t` of Debian's version sees it."""
    assert NATS_SERVER is not None
    argv = [NATS_SERVER, "-t", "-c", str(config_of(node, deployed))]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    checked = ["openssl", "verify", "-CAfile", "ca.pem", f"{node}.pem"]
    assert run_process(checked, cwd=deployed, timeout=30).returncode == 0


def test_every_toml_block_is_a_config(tmp_path: Path) -> None:
    """Of gitmirror's own parser."""
    found = [text for kind, text in BLOCKS if kind == "toml"]
    assert found
    for text in found:
        path = tmp_path / "gitmirror.toml"
        path.write_text(text)
        assert load_config(path).fleet.is_on


@pytest.mark.slow
@needs_nats
def test_a_node_is_itself_alone(deployed: Path, tmp_path: Path) -> None:
    """It publishes its own turns and heads, nobody else's, and deletes no stream and no head."""
    config = config_of("node-1", deployed).read_text()
    users = re.search(r"^authorization .*$", config, re.MULTILINE)
    assert users
    server = NatsServer(tmp_path, extra=users[0])
    shutil.copy(deployed / "users.conf", server.directory)
    server.start()
    try:
        asyncio.run(_as_node_1(server.url, deployed))
    finally:
        server.stop()


async def _as_node_1(url: str, place: Path) -> None:
    user, _, password = (place / "node-1.credentials").read_text().strip().partition(":")
    refused: list[str] = []

    async def note(error: Exception) -> None:
        refused.append(str(error))

    async with asyncio.timeout(60):
        client = await nats.connect(url, user=user, password=password, error_cb=note, max_reconnect_attempts=20)
        # Who may not ask gets no answer, which takes as long as one waits.
        context, vain = client.jetstream(timeout=20), client.jetstream(timeout=1)
        await context.add_stream(name=NAMES.heads, subjects=[NAMES.heads_of("*")], deny_delete=True, deny_purge=True)
        sequence = (await context.publish(NAMES.heads_of("node-1"), b"head")).seq
        for others in (NAMES.heads_of("node-2"), NAMES.turns_of("node-2")):
            with pytest.raises(nats.errors.Error):
                await vain.publish(others, b"not mine", timeout=1)
        for forbidden in (
            vain.delete_stream(NAMES.heads),
            vain.purge_stream(NAMES.heads),
            vain.delete_msg(NAMES.heads, sequence),
        ):
            with pytest.raises(nats.errors.Error):
                await forbidden
        assert (await context.stream_info(NAMES.heads)).state.messages == 1
        assert len([each for each in refused if "permissions violation for publish" in each.lower()]) == 5
        await client.close()
