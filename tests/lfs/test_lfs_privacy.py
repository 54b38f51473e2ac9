"""Whoever waits for a repository that becomes private meanwhile gets nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.lfs.node import DATA, LfsNode, lfs_node
from tests.support.gitutil import wait_until
from tests.support.lfs_server import pointer_of

pytestmark = pytest.mark.slow

NOT_HERE = f"/{WIDGETS} is not mirrored here"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[LfsNode]:
    """A node of this test alone."""
    with lfs_node(tmp_path) as made:
        yield made


def make_private(node: LfsNode) -> None:
    """Gives the open repository a credential, which makes it private."""
    entry = f'\n[[credentials]]\nurl = "{node.lfs.url(WIDGETS)}"\ntoken_file = "{node.place / "token"}"\n'
    node.serve.config.write_text(node.serve.config.read_text() + entry)
    node.serve.reload()
    wait_until(lambda: node.ask("GET", f"/{WIDGETS}/freshness")[0] == 404, message="it is private")


def pointer(name: str) -> tuple[str, int]:
    """The id and the size of an object."""
    lines = pointer_of(DATA[name]).decode().split("\n")
    return lines[1].removeprefix("oid sha256:"), int(lines[2].removeprefix("size "))


def test_a_guest_that_waits_for_an_object(node: LfsNode) -> None:
    """Neither the object nor a batch is answered."""
    oid, size = pointer("one.bin")
    node.lfs.faults.hang_objects = True
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(node.ask, "GET", f"/{WIDGETS}/info/lfs/objects/{oid}?size={size}")
        wait_until(lambda: node.lfs.count("object") == 1, message="the object is fetched")
        make_private(node)
        node.lfs.reset()
        status, _, text = waiting.result(60)
    assert (status, NOT_HERE in text.decode()) == (404, True)


def test_a_guest_that_waits_for_a_batch(node: LfsNode) -> None:
    """It does not learn which objects there are."""
    node.lfs.faults.hang_batch = True
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(node.batch, f"/{WIDGETS}", pointer("one.bin"))
        wait_until(lambda: node.lfs.count("batch") == 1, message="the upstream is asked")
        make_private(node)
        node.lfs.reset()
        status, found = waiting.result(60)
    assert (status, found["message"]) == (404, NOT_HERE)


def test_a_guest_that_waits_for_a_tar(tmp_path: Path) -> None:
    """Its build waits for LFS files, here; it may also wait for its turn."""
    with lfs_node(tmp_path, serve={"wait_for_clone": "1s"}) as node:
        node.lfs.faults.hang_objects = True
        config = node.serve.config.read_text()
        assert "[workspace]" in config
        node.serve.config.write_text(config.replace("[workspace]", '[workspace]\nlfs = "content"'))
        node.serve.reload()
        wait_until(lambda: node.lfs.count("object") > 0, message="a build waits for objects")
        with ThreadPoolExecutor(2) as pool:
            waiting = pool.submit(node.ask, "GET", f"/{WIDGETS}/workspace.tar?history=tip")
            make_private(node)
            node.lfs.reset()
            status, _, text = waiting.result(90)
    assert (status, NOT_HERE in text.decode()) == (404, True)
