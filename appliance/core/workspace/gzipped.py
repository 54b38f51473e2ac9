"""Gzipped copies of tars, for guests on slow roads: made beside a tar once somebody asks, and never waited for."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from appliance.core.process.checked_file import CheckedFile, Identity
from appliance.core.process.children import Children
from appliance.core.process.endurance import Endurance
from appliance.core.process.run import run_child

log = logging.getLogger(__name__)

DEADLINE = 1800.0
DIGEST_LENGTH = 16
"""Hex digits of a copy's SHA-256 in its ETag."""
COPY_SUFFIX = ".gz"
"""What the name of a copy has after that of its tar."""
_GROWING = ".gz-growing"

# Level 1 makes the tars of real repositories 1.9 to 2.7 times smaller at 70 MB/s. Higher levels take several times as
# long for a few percent.
_COMPRESS = """
import hashlib, sys, zlib
digest, coder = hashlib.sha256(), zlib.compressobj(1, zlib.DEFLATED, 31)
with open(sys.argv[1], "rb") as tar, open(sys.argv[2], "wb") as copy:
    def write(data):
        digest.update(data)
        copy.write(data)
    while data := tar.read(1 << 20):
        write(coder.compress(data))
    write(coder.flush())
print(digest.hexdigest())
"""


@dataclass(frozen=True)
class GzippedTar:
    """An existing copy: its path and the beginning of its SHA-256 in hex."""

    path: Path
    digest: str


class GzippedTars:
    """The copies that this process has made. Those of an earlier one are made anew when somebody asks."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._kept: dict[Path, tuple[Identity, CheckedFile]] = {}
        self._making: dict[Path, asyncio.Task[None]] = {}
        self._one_at_a_time = asyncio.Semaphore(1)
        self._endurance = Endurance(log, "compressing a snapshot")

    def get(self, tar: Path) -> GzippedTar | None:
        """The copy of a tar. If there is none, begins to make it, and returns None."""
        source, kept = self._kept.get(tar, (None, None))
        if kept is not None and kept.digest and kept.is_untouched() and source == _identity(tar):
            return GzippedTar(kept.path, kept.digest[:DIGEST_LENGTH])
        if tar not in self._making:
            self._making[tar] = asyncio.create_task(self._make(tar), name=f"compress {tar.name}")
        return None

    async def _make(self, tar: Path) -> None:
        try:
            with self._endurance.over(str(tar.parent)):
                async with self._one_at_a_time:
                    await asyncio.to_thread(self._sweep, tar.parent)
                    await self._compress(tar)
        finally:
            del self._making[tar]

    def _sweep(self, directory: Path) -> None:
        """Removes the copies of tars that are gone, and what a killed process left. Raises OSError."""
        for copy in directory.glob(f"*{_GROWING}"):
            copy.unlink()
        for copy in directory.glob(f"*{COPY_SUFFIX}"):
            tar = copy.with_suffix("")
            if tar not in self._kept or not tar.exists():
                copy.unlink()
        for tar in [tar for tar in self._kept if not tar.exists()]:
            del self._kept[tar]

    async def _compress(self, tar: Path) -> None:
        growing, copy = tar.with_name(tar.name + _GROWING), tar.with_name(tar.name + COPY_SUFFIX)
        errors, source = bytearray(), _identity(tar)
        if source is None:
            return
        argv = [sys.executable, "-IS", "-c", _COMPRESS, str(tar), str(growing)]
        environment = {"PATH": os.environ.get("PATH", os.defpath)}
        code, output = await run_child(
            self._children, argv, env=environment, cwd=tar.parent, deadline=DEADLINE, on_error=errors.extend, nice=19
        )
        if code != 0:
            growing.unlink(missing_ok=True)
            if not tar.exists():
                # Replaced meanwhile.
                return
            lines = errors.decode(errors="replace").split("\n")
            raise OSError(f"the compressor ended with code {code}: {' '.join(lines[-2:]).strip()}")
        if _identity(tar) != source:
            # Replaced or removed while it was read to the end.
            growing.unlink(missing_ok=True)
            return
        growing.rename(copy)
        self._kept[tar] = source, CheckedFile(copy, Identity.of(copy.stat()), output.decode().strip())


def _identity(tar: Path) -> Identity | None:
    """That of a tar, which another one of the same name does not have; None if there is none."""
    try:
        return Identity.of(tar.stat())
    except OSError:
        return None
