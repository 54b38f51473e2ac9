"""Workspaces as disks: hydrations by the guest kit from two drives, and what the next tip costs. Needs root."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchlib.processes import BenchError, run_git, wait_until
from benchlib.servers import Gitmirror

NEXT_TIPS = 5
BUILD = 600.0
"""Seconds that a disk may take to be built."""


@dataclass
class DiskFigures:
    """Seconds of the kit, of the kit and a first `git status`, and of the builds of next tips, with bytes.

    `grown` is how many bytes the data drive gains for each next tip.
    """

    kit: list[float] = field(default_factory=list)
    status: list[float] = field(default_factory=list)
    next_tip: list[float] = field(default_factory=list)
    grown: list[int] = field(default_factory=list)
    first_build: float = 0.0
    tree_bytes: int = 0
    data_bytes: int = 0


def why_no_disks() -> str | None:
    """Why disks cannot be measured on this machine, or None if they can."""
    if os.geteuid() != 0:
        return "only root attaches and mounts drives"
    if shutil.which("losetup") is None or subprocess.run(["losetup", "--find"], capture_output=True).returncode:
        return "there are no loop devices"
    kinds = Path("/proc/filesystems").read_text()
    missing = [kind for kind in ("erofs", "overlay") if f"\t{kind}\n" not in kinds]
    return f"the kernel has no {' and no '.join(missing)}" if missing else None


@dataclass(frozen=True)
class Drives:
    """The leased drives of one disk, as block devices, for the kit at `kit` with `env`."""

    devices: str
    name: str
    tip: str
    kit: Path
    fast: Path
    env: Mapping[str, str]

    def hydrate(self, figures: DiskFigures) -> None:
        """Hydrates one workspace, runs `git status` in it and unmounts it. Raises BenchError."""
        path = self.fast / "disk-workspace"
        start = time.perf_counter()
        output = self._run("sh", str(self.kit), "hydrate", self.name, str(path))
        figures.kit.append(time.perf_counter() - start)
        try:
            if not output.startswith(f"hydrated via=disk commit={self.tip} "):
                raise BenchError(f"the kit did not use the disk: {output}")
            if changed := run_git("status", "--porcelain", cwd=path, env=self.env):
                raise BenchError(f"a workspace is changed: {changed}")
            figures.status.append(time.perf_counter() - start)
        finally:
            self._run("umount", str(path))
            path.rmdir()

    def _run(self, *argv: str) -> str:
        env = {**self.env, "GITMIRROR_DRIVES": self.devices}
        done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"{argv[0]} failed: {done.stderr.strip()}")
        return done.stdout


@contextlib.contextmanager
def leased(
    appliance: Gitmirror, tip: str, kit: Path, fast: Path, env: Mapping[str, str], figures: DiskFigures
) -> Iterator[Drives]:
    """Leases the disk of the tip, and attaches its drives. Raises BenchError."""
    lease = _lease(appliance, tip)
    figures.first_build = appliance.disk_builds()[-1]
    paths = {drive["role"]: Path(drive["path"]) for drive in lease["drives"]}
    figures.tree_bytes, figures.data_bytes = (paths[role].stat().st_size for role in ("tree", "data"))
    with attached(paths["tree"]) as tree, attached(paths["data"]) as data:
        yield Drives(f"{tree},{data}", appliance.name, tip, kit, fast, env)


def measure_next_tips(
    appliance: Gitmirror, upstream: Path, branch: str, env: Mapping[str, str], figures: DiskFigures
) -> None:
    """Commits one changed file upstream, several times, and reads from the log how long each build took."""
    for number in range(NEXT_TIPS):
        old = run_git("rev-parse", branch, cwd=upstream, env=env)
        before, builds = _data_size(_lease(appliance, old)), len(appliance.disk_builds())
        tip = _change_one_file(upstream, branch, number, env)
        appliance.command("refresh", appliance.name)
        figures.grown.append(_data_size(_lease(appliance, tip)) - before)
        figures.next_tip += appliance.disk_builds()[builds:]


def _lease(appliance: Gitmirror, tip: str) -> dict[str, list[dict[str, str]]]:
    lease: dict[str, list[dict[str, str]]] = {}

    def is_there() -> bool:
        lease.update(json.loads(appliance.command("disk", appliance.name, "--ttl", "1h", "--json")))
        return lease["commit"] == tip  # type: ignore[comparison-overlap]

    wait_until(is_there, "the disk is built", BUILD)
    return lease


def _data_size(lease: Mapping[str, list[dict[str, str]]]) -> int:
    return sum(Path(drive["path"]).stat().st_size for drive in lease["drives"] if drive["role"] == "data")


def _change_one_file(upstream: Path, branch: str, number: int, env: Mapping[str, str]) -> str:
    path = run_git("ls-tree", "-r", "--name-only", branch, cwd=upstream, env=env).splitlines()[number]
    text = f"change {number}\n"
    stream = (
        f"commit {branch}\ncommitter Bench <bench@example.org> {1_800_000_000 + number} +0000\ndata 6\nchange\n"
        f"from {branch}^0\nM 100644 inline {path}\ndata {len(text)}\n{text}\n"
    )
    run_git("fast-import", "--quiet", cwd=upstream, env=env, stdin=stream.encode())
    return run_git("rev-parse", branch, cwd=upstream, env=env)


@contextlib.contextmanager
def attached(path: Path) -> Iterator[str]:
    """A read-only loop device of a file, as a virtio drive is in a guest."""
    command = ["losetup", "--find", "--show", "--read-only", str(path)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
