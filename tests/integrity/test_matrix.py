"""Every kind of damage to a mirror: found, healed where the upstream has the objects, and what is lost is named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.core.git.ref_sets import ANCHORS
from appliance.core.integrity.inspection import Inspection
from tests.git.lab import followed
from tests.integrity.conftest import Scene, kept
from tests.recording.conftest import AGENTS, ARCHIVE, TURNS
from tests.support.gitutil import fsck, git, git_result, refs

LOOK, INSPECT, FULL = "look", "inspect", "full"


@dataclass(frozen=True)
class Row:
    """A kind of damage: what does it, what finds it first, and a commit whose turns cannot be saved, if any."""

    name: str
    damage: Callable[[Scene], None]
    found_by: str
    costs: str | None = None


def flip(path: Path, at: float = 0.5) -> None:
    """Change eight bytes, at a part of the file's length; a negative number of bytes counts from its end."""
    data = bytearray(path.read_bytes())
    first = int(len(data) * at) if at >= 0 else len(data) + int(at)
    data[first : first + 8] = bytes(each ^ 0xFF for each in data[first : first + 8])
    path.chmod(0o644)
    path.write_bytes(data)


def truncate(path: Path, to: float = 0.6) -> None:
    """Cut a file off, at a part of its length."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * to))


def packs(scene: Scene) -> list[Path]:
    """The packs, the largest first."""
    found = (scene.path / "objects" / "pack").glob("pack-*.pack")
    return sorted(found, key=lambda path: path.stat().st_size, reverse=True)


def each_file(scene: Scene, pattern: str, damage: Callable[[Path], None]) -> None:
    """Damage every file of that kind; there must be one."""
    found = list(scene.path.glob(pattern))
    assert found, pattern
    for path in found:
        damage(path)


def on_derived(pattern: str) -> Callable[[Scene], None]:
    """After maintenance, damage what git derives."""

    def damage(scene: Scene) -> None:
        git("repack", "-adq", "--write-bitmap-index", "--write-midx", cwd=scene.path)
        git("commit-graph", "write", "--reachable", "--split", cwd=scene.path)
        each_file(scene, pattern, flip)

    return damage


def without_object(revision: str) -> Callable[[Scene], None]:
    """Remove a loose object."""
    return lambda scene: scene.object_of(revision).unlink()


def with_empty_object(revision: str) -> Callable[[Scene], None]:
    """Leave a loose object empty, as a power cut does."""

    def damage(scene: Scene) -> None:
        path = scene.object_of(revision)
        path.chmod(0o644)
        path.write_bytes(b"")

    return damage


def ref_file(ref: str, content: bytes) -> Callable[[Scene], None]:
    """Put something else into the file of a loose ref; `turn` and `anchor` stand for one of them."""

    def damage(scene: Scene) -> None:
        prefix = {"turn": TURNS, "anchor": ANCHORS}.get(ref)
        name = next(each for each in refs(scene.path) if each.startswith(prefix)) if prefix else ref
        path = scene.path / name
        if not path.exists():
            oid = git("rev-parse", name, cwd=scene.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{oid}\n")
        path.write_bytes(content)

    return damage


def packed_refs(damage: Callable[[Path], None]) -> Callable[[Scene], None]:
    """Pack all refs, and damage the file."""

    def work(scene: Scene) -> None:
        git("pack-refs", "--all", cwd=scene.path)
        damage(scene.path / "packed-refs")

    return work


def in_one_pack(damage: Callable[[Path], None]) -> Callable[[Scene], None]:
    """Pack everything, recorded work too, and damage the pack."""
    return lambda scene: damage(scene.pack_everything())


def without_index(damage: Callable[[Path], None]) -> Callable[[Path], None]:
    """Also remove the pack's index."""

    def work(pack: Path) -> None:
        pack.with_suffix(".idx").unlink()
        damage(pack)

    return work


def empty(path: Path) -> None:
    """Leave nothing in a file."""
    path.chmod(0o644)
    path.write_bytes(b"")


def remove(path: Path) -> None:
    """Remove a file or a directory."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def make_a_directory(path: Path) -> None:
    """Put a directory in the place of a file."""
    path.unlink()
    path.mkdir()


ROWS = [
    Row("pack flipped", lambda scene: flip(packs(scene)[0], 0.3), FULL),
    Row("pack flipped in its header", lambda scene: flip(packs(scene)[0], 0.0), LOOK),
    Row("pack truncated", lambda scene: truncate(packs(scene)[0]), LOOK),
    Row("pack empty", lambda scene: empty(packs(scene)[0]), LOOK),
    Row("pack gone", lambda scene: packs(scene)[0].unlink(), LOOK),
    Row("pack and index gone", lambda scene: each_file(scene, "objects/pack/pack-*", remove), INSPECT),
    Row("index gone", lambda scene: packs(scene)[0].with_suffix(".idx").unlink(), LOOK),
    Row("index flipped", lambda scene: flip(packs(scene)[0].with_suffix(".idx")), INSPECT),
    Row("index flipped at its end", lambda scene: flip(packs(scene)[0].with_suffix(".idx"), -30), LOOK),
    Row("index empty", lambda scene: empty(packs(scene)[0].with_suffix(".idx")), LOOK),
    Row("bitmap flipped", on_derived("objects/pack/*.bitmap"), INSPECT),
    Row("reverse index flipped", on_derived("objects/pack/*.rev"), INSPECT),
    Row("multi-pack-index flipped", on_derived("objects/pack/multi-pack-index"), INSPECT),
    Row("commit-graph flipped", on_derived("objects/info/commit-graphs/*.graph"), INSPECT),
    Row("one pack for all, truncated at the end", in_one_pack(lambda path: truncate(path, 0.97)), LOOK),
    Row("one pack for all, flipped at its end", in_one_pack(lambda path: flip(path, -10)), LOOK),
    Row("one pack for all, without index", in_one_pack(without_index(lambda path: None)), LOOK),
    Row(
        "one pack for all, without index, truncated",
        in_one_pack(without_index(lambda path: truncate(path, 0.97))),
        LOOK,
    ),
    Row("commit of a branch gone", without_object("main"), INSPECT),
    Row("tree of a branch gone", without_object("main^{tree}"), INSPECT),
    Row("blob of a branch gone", without_object("main:NEWS"), INSPECT),
    Row("blob of a branch empty", with_empty_object("main:NEWS"), LOOK),
    Row("commit of a session gone", without_object(f"{AGENTS}two"), INSPECT, f"{AGENTS}two"),
    Row("tree of a session gone", without_object(f"{AGENTS}two^{{tree}}"), INSPECT, f"{AGENTS}two"),
    Row("blob of a session gone", without_object(f"{AGENTS}two:turn.txt"), INSPECT, f"{AGENTS}two"),
    Row("blob of a session empty", with_empty_object(f"{AGENTS}two:turn.txt"), LOOK, f"{AGENTS}two"),
    Row("commit of a turn gone", without_object(f"{AGENTS}two~1"), INSPECT, f"{AGENTS}two~1"),
    Row("tree of a turn gone", without_object(f"{AGENTS}two~1^{{tree}}"), INSPECT, f"{AGENTS}two~1"),
    Row("blob of a turn gone", without_object(f"{AGENTS}two~1:turn.txt"), INSPECT, f"{AGENTS}two~1"),
    Row("packed-refs truncated", packed_refs(truncate), LOOK),
    Row("packed-refs emptied", packed_refs(empty), LOOK),
    Row("packed-refs flipped", packed_refs(flip), LOOK),
    Row("packed-refs gone", packed_refs(remove), LOOK),
    Row("packed-refs a directory", packed_refs(make_a_directory), LOOK),
    *(
        Row(f"{what} {kind}", ref_file(ref, content), LOOK)
        for what, ref in (
            ("branch", "refs/heads/main"),
            ("session", f"{AGENTS}one"),
            ("archived session", f"{ARCHIVE}old"),
            ("turn", "turn"),
            ("anchor", "anchor"),
        )
        for kind, content in (("empty", b""), ("garbage", b"\0" * 41), ("zeros", b"0" * 40 + b"\n"))
    ),
    Row("HEAD gone", lambda scene: (scene.path / "HEAD").unlink(), LOOK),
    Row("HEAD empty", lambda scene: empty(scene.path / "HEAD"), LOOK),
    Row("config gone", lambda scene: (scene.path / "config").unlink(), LOOK),
    Row("config flipped", lambda scene: flip(scene.path / "config", 0.0), LOOK),
    Row("refs gone", lambda scene: remove(scene.path / "refs"), LOOK),
]


_COST_ANCHORS = {
    *(f"pack {what}" for what in ("flipped", "empty", "gone", "and index gone")),
    *(f"packed-refs {what}" for what in ("truncated", "emptied", "flipped", "gone", "a directory")),
    *(f"anchor {what}" for what in ("empty", "garbage", "zeros")),
    "index flipped",
    "one pack for all, without index, truncated",
    "refs gone",
}
"""The damage after which old values of branches may be nowhere. An anchor is a kindness, not a recording."""


_QUICK = {
    "pack truncated",
    "index gone",
    "blob of a branch gone",
    "blob of a turn gone",
    "packed-refs truncated",
    "packed-refs gone",
    "session empty",
    "HEAD gone",
}
"""One of each kind; the others are left to the full run."""


def find(scene: Scene, found_by: str) -> Inspection:
    """What finds the damage, after nothing cheaper has."""
    levels: dict[str, Callable[[], Inspection]] = {
        LOOK: scene.look,
        INSPECT: scene.inspect,
        FULL: lambda: scene.inspect(full=True),
    }
    found = levels[found_by]()
    assert found.damage, f"not found by {found_by}"
    return found


def reaching(scene: Scene, commit: str) -> set[str]:
    """The recorded refs whose history has a commit."""
    oid = git("rev-parse", commit, cwd=scene.path)
    return set(git("for-each-ref", "--format=%(refname)", f"--contains={oid}", *_RECORDED, cwd=scene.path).split())


_RECORDED = (AGENTS, ARCHIVE, TURNS)


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name, marks=() if row.name in _QUICK else pytest.mark.slow) for row in ROWS]
)
def test_damage_is_found_and_healed(scene: Scene, row: Row) -> None:
    before, others = kept(scene.path), scene.snapshot_of_others()
    anchors = {ref for ref in refs(scene.path) if ref.startswith(ANCHORS)}
    lost = reaching(scene, row.costs) if row.costs else set()
    row.damage(scene)
    found = find(scene, row.found_by)

    healing = scene.heal(found)

    assert set(healing.lost) == lost, healing
    assert healing.lost == {ref: before[ref] for ref in lost}
    assert healing.whole == (not lost) and healing.done
    assert (healing.remaining is None) == healing.whole
    assert kept(scene.path) == {ref: oid for ref, oid in before.items() if ref not in lost}
    fsck(scene.path)
    assert scene.inspect(full=True).lost_refs == healing.lost
    assert scene.snapshot_of_others() == others
    assert not scene.layout.healing.exists()
    assert healing.evidence is None or healing.evidence.is_dir()
    scene.refresh()
    assert followed(scene.path) == followed(scene.upstream)
    assert scene.mirror.head() == "refs/heads/main"
    assert not scene.mirror.awaits_upstream()
    fsck(scene.path)
    if row.name not in _COST_ANCHORS:
        assert anchors <= refs(scene.path).keys()
    if not lost:
        assert scene.look() == Inspection()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["everything", "objects"])
def test_what_nobody_has_is_named(scene: Scene, part: str) -> None:
    """The directory of the mirror is gone, or its objects: branches come from the upstream, and all turns are lost."""
    before = kept(scene.path)
    remove(scene.path if part == "everything" else scene.path / "objects")
    healing = scene.heal(scene.look())
    assert healing.lost == before
    assert not healing.whole and healing.remaining and "is lost" in healing.remaining
    assert followed(scene.path) == followed(scene.upstream)
    fsck(scene.path)


@pytest.mark.slow
@pytest.mark.parametrize("nth", range(0, 12, 3))
def test_one_unreadable_turn_never_costs_another(scene: Scene, nth: int) -> None:
    """Everything is in one pack, and one object of recorded work is damaged in it."""
    before, pack = kept(scene.path), scene.pack_everything()
    own = git("rev-list", "--objects", *before.values(), "--not", "--branches", cwd=scene.path)
    oids = sorted(line.split()[0] for line in own.splitlines())
    listing = git("verify-pack", "-v", str(pack.with_suffix(".idx")), cwd=scene.path).splitlines()
    [(offset, size)] = [(int(words[4]), int(words[3])) for words in map(str.split, listing) if words[0] == oids[nth]]
    data = bytearray(pack.read_bytes())
    data[offset + size // 2] ^= 0xFF
    pack.write_bytes(data)
    lost = {ref for ref, oid in before.items() if not can_be_read(scene, oid)}
    assert 0 < len(lost) < len(before)

    healing = scene.heal(scene.inspect(full=True))

    assert set(healing.lost) == lost
    assert kept(scene.path) == {ref: oid for ref, oid in before.items() if ref not in lost}
    fsck(scene.path)


def can_be_read(scene: Scene, oid: str) -> bool:
    """Whether git can pack all that a commit reaches, with the help of the upstream."""
    env = {**os.environ, "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(scene.upstream / "objects")}
    excluded = [f"^{each}" for each in followed(scene.upstream).values()]
    lines = "".join(f"{each}\n" for each in (oid, *excluded))
    # With a bitmap or a pack to reuse, git copies what it does not read.
    options = ("--revs", "--stdout", "-q", "--no-reuse-object", "--no-use-bitmap-index")
    code, _, _ = git_result("pack-objects", *options, cwd=scene.path, env=env, input=lines)
    return code == 0
