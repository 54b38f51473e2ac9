"""The LFS room on a scratch state directory, in front of a real LFS server: no `serve`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any, TypeVar

from appliance.core.config.credentials import CredentialConfig, Credentials
from appliance.core.git.keyring import Keyring
from appliance.core.git.mirrors import Mirrors
from appliance.core.lfs.objects import LfsObjects
from appliance.core.lfs.pointers import Pointer
from appliance.core.lfs.stock import LfsStock
from appliance.core.lfs.upstream import LfsUpstreams
from appliance.core.models import Health, Repo
from tests.git.lab import Lab

_T = TypeVar("_T")

WIDGETS, SECRET = "acme/widgets", "acme/secret"


class Holder:
    """What a reload gives another keyring."""

    def __init__(self) -> None:
        self.keyring = Keyring(Credentials(), os.environ)

    def use(self, entries: Iterable[CredentialConfig]) -> None:
        """These entries from now on."""
        self.keyring = Keyring(Credentials(entries), os.environ)


class LfsLab:
    """Objects below a state directory. Close it after use."""

    def __init__(self, place: Path, budget: int = 2**30) -> None:
        self.lab = Lab(place)
        self.holder = Holder()
        self.health = Health()
        self.objects = self.again(budget)

    def again(self, budget: int = 2**30) -> LfsObjects:
        """The objects as another `serve` finds them."""
        mirrors = Mirrors(self.lab.layout, self.lab.git)
        upstreams = LfsUpstreams(mirrors, lambda _: self.health, self.holder)
        self.objects = LfsObjects(LfsStock(self.lab.layout.lfs, budget), upstreams)
        self.objects.stock.load()
        return self.objects

    @staticmethod
    def run(work: Coroutine[Any, Any, _T]) -> _T:
        """Run a test's coroutine with a deadline."""
        return asyncio.run(asyncio.wait_for(work, 60))

    async def bytes_of(self, repo: Repo, pointer: Pointer, seconds: float = 20.0) -> bytes:
        """What a guest gets. Raises GitmirrorError."""
        found = await self.objects.open(repo, pointer.oid, pointer.size, seconds)
        if isinstance(found, Path):
            return found.read_bytes()
        file, data = found.open(), b""
        found.readers += 1
        try:
            while len(data) < pointer.size:
                ready = await found.ready_beyond(len(data))
                piece = os.pread(file, ready - len(data), len(data))
                assert piece, "the file is shorter than what is said to have arrived"
                data += piece
        finally:
            found.readers -= 1
            os.close(file)
        return data

    def close(self) -> None:
        """Release the state directory."""
        self.lab.close()


def repo_of(url: str, name: str = WIDGETS, number: int = 1) -> Repo:
    """A registered repository."""
    return Repo(number, name, url, None, "cli", None, True, 0.0)
