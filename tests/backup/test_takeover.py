"""What a restore keeps of the mirrors that it finds: turns that are newer than the backup."""

from __future__ import annotations

import shutil
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from appliance.core.backup.restoring import RestoreReport, restore
from appliance.core.backup.takeover import merged, newer_than
from appliance.core.git.mirror import MARK, Mirror
from appliance.core.layout import Layout
from tests.backup.conftest import recorded
from tests.backup.test_backup_rules import Stopped, recorded_state, stopped
from tests.conftest import WIDGETS
from tests.recording.conftest import AGENTS, ARCHIVE, TURNS
from tests.support.gitutil import fsck, git, refs

__all__ = ["recorded_state", "stopped"]

OIDS = st.sampled_from([character * 40 for character in "abcdef"])
REFS = st.one_of(
    st.integers(1, 9).map(lambda number: f"{TURNS}{number}"),
    st.sampled_from([f"{below}{name}" for below in (AGENTS, ARCHIVE) for name in ("s1", "s2")]),
)


def over(stopped: Stopped, *, only_database: bool = False) -> RestoreReport:
    """Restores the backup over the state directory that it was made of."""
    return restore(stopped.target, stopped.layout, move_aside=True, only_database=only_database)


@given(st.dictionaries(REFS, OIDS), st.dictionaries(REFS, OIDS))
def test_no_turn_of_either_is_left_out(backup: dict[str, str], on_disk: dict[str, str]) -> None:
    """The backup's keep their ids; a newer one with an id that is taken gets another."""
    newer = newer_than(backup, on_disk)
    found = merged(backup, newer)
    turns = {ref: oid for ref, oid in backup.items() if ref.startswith(TURNS)}
    assert turns.items() <= found.items()
    for ref, oid in on_disk.items():
        if ref.startswith(TURNS):
            assert found[newer.moved.get(ref, ref)] == oid
    assert len({ref for ref in found if ref.startswith(TURNS)}) == len(turns) + len(newer.turns)
    for ref, oid in newer.sessions.items():
        assert found[ref] == oid and ref.replace(AGENTS, ARCHIVE) not in found


def test_newer_turns_are_taken_over_from_the_mirrors_that_are_moved_aside(stopped: Stopped) -> None:
    """With their sessions; one whose id the backup gave to another turn gets a new id."""
    stopped.back_up()
    before = recorded(stopped.mirror)
    newer, other = stopped.add_turn(1000), stopped.add_turn(1001)
    taken = next(ref for ref in before if ref.startswith(TURNS))
    git("update-ref", taken, other, cwd=stopped.mirror)
    git("update-ref", f"{AGENTS}s9", newer, cwd=stopped.mirror)
    (stopped.mirror / MARK).write_text("https://host/acme/widgets\n")
    report = over(stopped)
    assert report.newer == {WIDGETS: 3} and not report.unread and not report.unregistered
    found = recorded(stopped.mirror)
    assert before.items() <= found.items()
    assert found[f"{TURNS}1000"] == found[f"{AGENTS}s9"] == newer and found[f"{TURNS}1001"] == other
    [moved] = found.keys() - before.keys() - {f"{TURNS}1000", f"{TURNS}1001", f"{AGENTS}s9"}
    assert found[moved] == other
    assert Mirror(stopped.mirror, None).awaits_upstream()  # type: ignore[arg-type]
    assert (stopped.mirror / MARK).exists(), "what became private since stays private"
    fsck(stopped.mirror)
    assert report.aside is not None and (Path(report.aside) / "mirrors" / f"{WIDGETS}.git").exists()
    assert not (stopped.layout.state / "restoring").exists()


def test_a_newer_turn_that_is_damaged_is_named_and_the_others_are_taken(stopped: Stopped) -> None:
    """The backup is restored whole."""
    stopped.back_up()
    before = recorded(stopped.mirror)
    broken, whole = stopped.add_turn(1000), stopped.add_turn(1001)
    (stopped.mirror / "objects" / broken[:2] / broken[2:]).unlink()
    report = over(stopped)
    assert report.newer == {WIDGETS: 1}
    [said] = report.unread
    assert WIDGETS in said and f"{TURNS}1000" in said
    assert recorded(stopped.mirror) == before | {f"{TURNS}1001": whole}


def test_a_mirror_that_cannot_be_read_is_named(stopped: Stopped) -> None:
    """And does not keep the backup from being restored."""
    stopped.back_up()
    before = recorded(stopped.mirror)
    stopped.add_turn(1000)
    (stopped.mirror / "HEAD").unlink()
    report = over(stopped)
    assert not report.newer and WIDGETS in str(report.unread)
    assert recorded(stopped.mirror) == before


def test_the_turns_of_a_repository_that_the_backup_does_not_know(stopped: Stopped) -> None:
    """They get a mirror, and the report says how to register it. Without turns there is nothing to keep."""
    stopped.back_up()
    turn = stopped.add_turn(1000)
    url = git("config", "remote.origin.url", cwd=stopped.mirror)
    for name in ("acme/later", "acme/without"):
        shutil.copytree(stopped.mirror, stopped.layout.mirror(name))
    for ref in recorded(stopped.layout.mirror("acme/without")):
        git("update-ref", "-d", ref, cwd=stopped.layout.mirror("acme/without"))
    for ref in recorded(stopped.layout.mirror("acme/later")).keys() - {f"{TURNS}1000"}:
        git("update-ref", "-d", ref, cwd=stopped.layout.mirror("acme/later"))
    report = over(stopped)
    assert report.newer == {WIDGETS: 1, "acme/later": 1} and report.unregistered == {"acme/later": url}
    assert recorded(stopped.layout.mirror("acme/later")) == {f"{TURNS}1000": turn}
    assert not stopped.layout.mirror("acme/without").exists()


def test_with_the_database_alone_the_mirrors_stay(stopped: Stopped) -> None:
    """Turns and objects that one lacks are added to it, and newer ones stay."""
    stopped.back_up()
    before, branches = recorded(stopped.mirror), refs(stopped.mirror)
    identity = stopped.mirror.stat().st_ino
    for ref in before:
        git("update-ref", "-d", ref, cwd=stopped.mirror)
    git("-c", "gc.pruneExpire=now", "gc", "--quiet", "--prune=now", cwd=stopped.mirror)
    newer = stopped.add_turn(1000)
    stopped.layout.database.write_bytes(b"nonsense")
    report = over(stopped, only_database=True)
    assert report.newer == {WIDGETS: 1} and not report.unread
    assert refs(stopped.mirror) == branches | {f"{TURNS}1000": newer}
    assert stopped.mirror.stat().st_ino == identity
    assert not Mirror(stopped.mirror, None).awaits_upstream()  # type: ignore[arg-type]
    fsck(stopped.mirror)
    assert report.aside is not None
    assert sorted(path.name for path in Path(report.aside).iterdir()) == ["audit-head", "gitmirror.db"]


def test_with_the_database_alone_a_mirror_that_is_damaged_is_replaced(stopped: Stopped, tmp_path: Path) -> None:
    """By one from the backup, beside others that stay; what was there is moved aside."""
    stopped.back_up()
    before = recorded(stopped.mirror)
    shutil.rmtree(stopped.mirror / "objects")
    report = over(stopped, only_database=True)
    assert recorded(stopped.mirror) == before
    fsck(stopped.mirror)
    assert report.aside is not None and (Path(report.aside) / "mirrors" / f"{WIDGETS}.git" / "HEAD").exists()


def test_without_a_used_directory_the_database_alone_is_all_of_it(stopped: Stopped, tmp_path: Path) -> None:
    """There are no mirrors that could stay."""
    stopped.back_up()
    new = Layout(tmp_path / "new")
    report = restore(stopped.target, new, move_aside=False, only_database=True)
    assert report.aside is None and recorded(new.mirror(WIDGETS)) == recorded(stopped.mirror)
