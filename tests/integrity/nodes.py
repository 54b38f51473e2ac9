"""A node with recorded sessions, and the damage that a disk does to its mirror."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import WIDGETS
from tests.recording.conftest import AGENTS, TURNS
from tests.support.generate import generate_repository
from tests.support.gitutil import commit_files, git, git_bytes, refs, wait_until
from tests.support.serve import Section, Serve
from tests.support.upstream import HttpUpstream

OTHER = "acme/other"
"""A second repository, which must not be touched by what happens to the first."""


@dataclass(frozen=True)
class DamagedNode:
    """A `serve` that refreshes when told to, with two turns of the session `fix-dns` in `acme/widgets`."""

    serve: Serve
    upstream: HttpUpstream
    turns: tuple[str, str]

    @property
    def mirror(self) -> Path:
        """The bare mirror of `acme/widgets`."""
        return self.serve.mirror(WIDGETS)

    def status(self, name: str = WIDGETS) -> dict[str, Any]:
        """The entry of a repository in `status`."""
        return next(entry for entry in self.serve.status()["repos"] if entry["name"] == name)

    def lose(self, oid: str) -> None:
        """Removes an object from the mirror, whose objects are all loose."""
        path = self.mirror / "objects" / oid[:2] / oid[2:]
        path.chmod(0o644)
        path.unlink()

    def lose_ref(self, ref: str) -> None:
        """Removes a ref as a disk does, without git."""
        packed, loose = self.mirror / "packed-refs", self.mirror / ref
        with contextlib.suppress(FileNotFoundError):
            loose.unlink()
        if packed.exists():
            lines = packed.read_text().splitlines(keepends=True)
            packed.write_text("".join(line for line in lines if line.split()[1:] != [ref]))

    def turn_refs(self) -> list[str]:
        """The refs of the turns."""
        return sorted(ref for ref in refs(self.mirror) if ref.startswith(TURNS))

    def refresh(self) -> None:
        """Moves the upstream and has it fetched, so that a look follows."""
        self.serve.here("refresh", WIDGETS)

    def wait_for_word(self, words: str) -> None:
        """Waits until the log of `serve` has these words."""
        wait_until(lambda: words in self.serve.log(), timeout=60, message=f"the log says {words!r}")


@contextlib.contextmanager
def damaged_node(
    place: Path, *, repos: Sequence[str] = (WIDGETS, OTHER), start: bool = True, alerts: Section | None = None
) -> Iterator[DamagedNode]:
    """A node whose mirrors have loose objects alone, so that one can be taken away."""
    with HttpUpstream(place / "upstream") as upstream:
        for name in repos:
            upstream.add(name, generate_repository(place / name.replace("/", "-"), commits=5, files=6))
        urls, settled = [upstream.url(name) for name in repos], {"interval": "1h", "stale_after": "1d"}
        with Serve(place / "state", repos=urls, refresh=settled, alerts=alerts or {}).start() as serve:
            for name in repos:
                serve.wait_for_repo(name)
            guest = serve.clone(place / "guest", WIDGETS)
            first = commit_files(guest, {"one.txt": "a\n"}, "the first turn")
            git("push", "-q", "origin", f"HEAD:{AGENTS}fix-dns", cwd=guest)
            second = commit_files(guest, {"two.txt": "b\n"}, "the second turn")
            git("push", "-q", "origin", f"HEAD:{AGENTS}fix-dns", cwd=guest)
            serve.terminate()
            node = DamagedNode(serve, upstream, (first, second))
            _unpack(node.mirror)
            if start:
                serve.start()
            yield node


def _unpack(mirror: Path) -> None:
    packs = mirror / "objects" / "pack"
    aside = mirror / "aside"
    aside.mkdir()
    for pack in packs.glob("*.pack"):
        pack.rename(aside / pack.name)
    for file in packs.iterdir():
        file.unlink()
    for pack in aside.iterdir():
        code, _, said = git_bytes("unpack-objects", "-q", cwd=mirror, input=pack.read_bytes())
        assert code == 0, said
        pack.unlink()
    aside.rmdir()
