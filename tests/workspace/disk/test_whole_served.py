"""A real `serve` with a private submodule and a real LFS server, and what a build of large files takes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from appliance.core.workspace.disk.build import WORKER
from appliance.core.workspace.disk.order import LargeFile
from tests.access.conftest import SECRET
from tests.conftest import WIDGETS
from tests.lfs.node import ATTRIBUTES, DATA, HIDDEN, LfsNode, lfs_node
from tests.support.erofs_reader import read_image
from tests.support.gitutil import git, wait_until
from tests.support.lfs_server import pointer_of
from tests.support.serve import ROOT, Serve
from tests.workspace.disk.disk_lab import DiskLab
from tests.workspace.disk.whole_lab import commit, section

pytestmark = pytest.mark.slow

MIB = 2**20
MEASURE = """\
import resource, subprocess, sys
subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
"""
"""Runs a command and prints the most KiB that it, or a child of it, had. A child begins with its parent's memory, so
the parent must be small, unlike this process."""


def drives(document: dict[str, Any]) -> list[Path]:
    """The drives of a lease."""
    return [Path(drive["path"]) for drive in document["drives"]]


def lease(serve: Serve, *words: str) -> dict[str, Any]:
    """A new lease of the open repository, asked for in this process: what the command does is shown elsewhere."""
    return dict(json.loads(serve.here("disk", WIDGETS, *words, "--json", codes=(0, 3))))


def holds(document: dict[str, Any], content: bytes) -> bool:
    """Whether a guest with these drives can read some contents."""
    return any(content in path.read_bytes() for path in drives(document))


def add_submodule(node: LfsNode) -> str:
    """Makes the private repository a submodule of the open one; returns the new tip, which the node mirrors."""
    recorded = git("rev-parse", "main", cwd=node.upstream.path(SECRET))
    files: dict[str, str | bytes] = {name: pointer_of(data) for name, data in DATA.items()}
    modules = section("hidden", "below/hidden", f"../{SECRET.partition('/')[2]}")
    tip = commit(
        node.upstream.path(WIDGETS),
        {**files, ".gitattributes": ATTRIBUTES, ".gitmodules": modules},
        {"below/hidden": recorded},
    )
    node.serve.here("refresh", WIDGETS)
    return tip


def test_a_node_leases_what_each_guest_may_read(tmp_path: Path) -> None:
    """Also with its upstreams gone, after a restart; the secret is on the drives of one guest alone."""
    with lfs_node(tmp_path, workspace={"lfs": "content", "submodules": True}) as node:
        tip, serve = add_submodule(node), node.serve
        first = lease(serve)
        assert first["commit"] == tip and first["submodules"] is True
        assert [each["path"] for each in first["missing"]] == ["below/hidden"]
        found = read_image(*drives(first))
        assert {name: found[name.encode()].content for name in DATA} == DATA
        serve.here("guest", "add", "vm-1", "--repo", SECRET, "--token")
        serve.here("guest", "add", "vm-2", "--only", "--repo", WIDGETS, "--token")
        allowed = lease(serve, "--guest", "vm-1")
        found = read_image(*drives(allowed))
        assert allowed["missing"] == [] and found[b"below/hidden/hidden.bin"].content == HIDDEN
        others = [lease(serve, *words) for words in ((), ("--guest", "vm-2"), ("--guest", "vm-9"))]
        others.append(lease(serve, "--guest", "vm-1", "--no-submodules"))
        assert holds(allowed, HIDDEN) and not any(holds(document, HIDDEN) for document in (first, *others))
        node.upstream.refuse()
        serve.kill()
        serve.start()
        again = lease(serve, "--guest", "vm-1")
        assert drives(again) == drives(allowed) and again["missing"] == []
        serve.here("guest", "remove", "vm-1")
        gone = lease(serve, "--guest", "vm-1")
        assert not holds(gone, HIDDEN) and [each["path"] for each in gone["missing"]] == ["below/hidden"]
        wait_until(lambda: len(json.loads(serve.here("disks", "--json"))) == 8)


def test_a_file_of_100_mb_is_streamed(lab: DiskLab, tmp_path: Path) -> None:
    """The worker and its gits stay small, and all images share the one copy, whose space counts once."""
    size, digest = 100 * MIB + 1, hashlib.sha256()
    stored = tmp_path / "object"
    with stored.open("wb") as file:
        for at in range(0, size, MIB):
            piece = os.urandom(min(MIB, size - at))
            digest.update(piece)
            file.write(piece)
    oid = digest.hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"
    commit(lab.bare, {".gitattributes": ATTRIBUTES, "large.bin": pointer, "copy.bin": pointer})
    large = tuple(LargeFile(path, oid, str(stored)) for path in ("large.bin", "copy.bin"))
    for number in range(2):
        order = replace(lab.order(), large=large)
        document = asdict(order) | {"place": str(lab.directory), "mirror": str(lab.bare)}
        lab.directory.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-S", "-c", MEASURE, *WORKER], input=json.dumps(document).encode(), capture_output=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True,
        )  # fmt: skip
        answer = json.loads(done.stdout)
        assert "error" not in answer, answer
        assert int(done.stderr.split()[-1]) * 1024 < 80 * MIB
        assert (lab.newest / "data").stat().st_size < size + 2 * MIB
        assert (lab.newest / "images" / answer["name"]).stat().st_size < MIB
        commit(lab.bare, {".gitattributes": ATTRIBUTES, "large.bin": pointer, "copy.bin": pointer, "n": f"{number}"})
