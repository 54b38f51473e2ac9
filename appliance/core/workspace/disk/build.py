"""Has an image built by a child process, at low priority."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import appliance
from appliance.core.errors import GitmirrorError
from appliance.core.git.mirror import Mirror
from appliance.core.lfs.pointers import Pointer
from appliance.core.process.run import run_child
from appliance.core.workspace.disk.images import DiskForm, DiskImage, DiskPlace
from appliance.core.workspace.disk.order import DiskOrder

NICENESS = 5
"""Below guests, but above the snapshots that are built at the same time and take ten times as long."""
LOOK_DEADLINE = 120.0
"""Seconds for a look at the attributes of a tree."""
BUILD_DEADLINE = 3600.0
"""Seconds. The first image of a very large repository copies its whole history."""
WORKER = (
    sys.executable, "-S", "-P", "-c",
    "import sys; from appliance.core.workspace.disk import worker; sys.exit(worker.main(sys.stdin, sys.stdout))",
)  # fmt: skip
"""The command of the worker. It needs the standard library and this package, so no site directory is searched."""


async def build_disk(place: DiskPlace, mirror: Mirror, order: DiskOrder) -> DiskImage:
    """Builds the image that `order` describes, unless it is there, and returns it. Raises GitmirrorError.

    The worker decides whether the present generation can go on. Only one build at a time may run for a place. When this
    is cancelled or the process is killed, what was built before stays as it was.
    """
    document = asdict(order) | {"place": str(place.directory), "mirror": str(mirror.path)}
    place.directory.mkdir(parents=True, exist_ok=True)
    answer = await _work(mirror, document, place.directory, f"the disk of {order.branch}", "built", BUILD_DEADLINE)
    return DiskImage(**answer | {"form": DiskForm(answer["form"])})


async def find_large(mirror: Mirror, commit: str) -> dict[str, Pointer]:
    """The LFS files of a commit by path, with the objects that they stand for. Raises GitmirrorError."""
    document = {"commit": commit, "mirror": str(mirror.path)}
    what = f"the list of LFS files of {commit[:12]}"
    answer = await _work(mirror, document, mirror.path, what, "made", LOOK_DEADLINE)
    return {path: Pointer(oid, size) for path, oid, size in answer["large"]}


async def _work(
    mirror: Mirror, document: dict[str, Any], directory: Path, what: str, done: str, deadline: float
) -> dict[str, Any]:
    """Runs a worker in `directory` and returns its answer. Raises GitmirrorError, which says what is not `done`."""
    git, said = mirror.git, bytearray()
    package = str(Path(appliance.__file__).parents[1])
    environment = {**git.environment, "PYTHONPATH": package, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        code, output = await run_child(
            git.children, WORKER,
            env=environment, cwd=directory, deadline=deadline, on_error=said.extend,
            stdin=json.dumps(document).encode(), nice=NICENESS,
        )  # fmt: skip
    except OSError as error:
        raise GitmirrorError(f"{what} cannot be {done}: {error}") from error
    if code is None:
        raise GitmirrorError(f"{what} was not {done} within {deadline:.0f} s")
    try:
        answer: dict[str, Any] = json.loads(output)
    except ValueError:
        reason = said.decode("utf-8", "replace").strip().rpartition("\n")[2] or f"exit code {code}"
        raise GitmirrorError(f"{what} cannot be {done}: {reason}") from None
    if "error" in answer:
        raise GitmirrorError(answer["error"], hint=answer["hint"])
    return answer
