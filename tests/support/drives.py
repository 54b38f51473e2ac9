"""Mounts drives in the kernel, as a guest does, and takes them off again."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

_CAP_SYS_ADMIN = 1 << 21


def _why_not() -> str:
    status = Path("/proc/self/status")
    if os.geteuid() != 0 or not status.exists():
        return "only root mounts drives"
    capabilities = next(line for line in status.read_text().splitlines() if line.startswith("CapEff:"))
    if not int(capabilities.split()[1], 16) & _CAP_SYS_ADMIN:
        return "this container may not mount"
    if shutil.which("losetup") is None or subprocess.run(["losetup", "--find"], capture_output=True).returncode:
        return "there are no loop devices"
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "--quiet", "erofs"], capture_output=True)
    if "\terofs\n" not in Path("/proc/filesystems").read_text():
        return "the kernel has no EROFS"
    return ""


skip = _why_not()
"""Why drives cannot be mounted here, or empty if they can."""
needs_mount = pytest.mark.skipif(bool(skip), reason=skip)
"""Skips a test where drives cannot be mounted."""


@contextmanager
def loop_device(path: Path) -> Iterator[Path]:
    """A read-only loop device of a file.

    It is released in any case. While it is mounted the kernel keeps it, and releases it when it is unmounted.
    """
    command = ["losetup", "--find", "--show", "--read-only", str(path)]
    device = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True)


@contextmanager
def mounted(tree: Path, data: Path | None = None, *, kind: str = "erofs") -> Iterator[Path]:
    """Mounts a tree drive, with its data drive if it needs one, and gives the directory that it is mounted on.

    Raises CalledProcessError if the kernel refuses it.
    """
    with tempfile.TemporaryDirectory(prefix="drive-") as directory:
        with ExitStack() as devices:
            options = "ro"
            if data is not None:
                options += f",device={devices.enter_context(loop_device(data))}"
            device = devices.enter_context(loop_device(tree))
            command = ["mount", "-t", kind, "-o", options, str(device), directory]
            subprocess.run(command, check=True, capture_output=True, text=True)
        try:
            yield Path(directory)
        finally:
            # Detached at once and released when the last one leaves, should something still stand in it.
            subprocess.run(["umount", "--lazy", directory], check=True)
