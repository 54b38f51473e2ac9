"""What holds for a backup directory whatever happens to it: kills, damage, other nodes, ended sessions."""

from __future__ import annotations

import os
import random
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.core.backup import directory as directory_module
from appliance.core.backup.directory import BackupDirectory, kept_names
from appliance.core.backup.manifest import HISTORY, Bundle, Manifest, StoredFile, name_of
from appliance.core.backup.manifest import TURNS as TURNS_KIND
from appliance.core.backup.restoring import restore
from appliance.core.backup.verification import verify_backups
from appliance.core.backup.writer import worth_keeping
from appliance.core.config.settings import Config
from appliance.core.errors import GitmirrorError
from appliance.core.git.mirror import MARK
from appliance.core.layout import Layout
from appliance.core.node.node import Node as NodeFace
from appliance.core.node.state_dir import open_stores
from appliance.core.process.children import Children
from appliance.core.store.database import DatabaseLost
from appliance.core.store.remedies import remedy
from tests.backup.conftest import record_session, recorded
from tests.conftest import WIDGETS
from tests.recording.conftest import AGENTS, TURNS
from tests.serving.conftest import SETTLED, Node
from tests.support.forked import ForkedProcess
from tests.support.gitutil import git, kill_group, refs
from tests.support.serve import ROOT, Serve
from tests.support.upstream import HttpUpstream

SESSIONS = ("s1", "s2", "s3")


@dataclass(frozen=True)
class Stopped:
    """A state directory with recorded sessions on which no `serve` runs, and where its backups go."""

    layout: Layout
    target: Path

    @property
    def mirror(self) -> Path:
        """Of `acme/widgets`."""
        return self.layout.mirror(WIDGETS)

    def back_up(self, to: Path | None = None) -> dict[str, object]:
        """Make a backup in this process; return its report."""
        return NodeFace(self.layout, Config()).current().backup(str(to or self.target))

    def newest(self) -> Manifest:
        """The newest manifest."""
        found = BackupDirectory(self.target).newest()
        assert found is not None
        return found

    def faults(self) -> list[str]:
        """The files that verification finds damaged."""
        return [fault["path"] for fault in verify_backups(self.target).faults]

    def add_turn(self, number: int) -> str:
        """Put a turn into the mirror that the log does not know; return its commit."""
        tree, parent = git("rev-parse", "main^{tree}", "main", cwd=self.mirror).split()
        commit = git("commit-tree", tree, "-p", parent, "-m", f"turn {number}", cwd=self.mirror)
        git("update-ref", f"{TURNS}{number}", commit, cwd=self.mirror)
        return commit

    def end(self, session: str) -> set[str]:
        """End a session as retention does; return its commits."""
        stores = open_stores(self.layout, create=False)
        attempts = stores.sessions.applied(WIDGETS, session)
        for ref in (f"{AGENTS}{session}", *(f"{TURNS}{attempt}" for attempt in attempts)):
            git("update-ref", "-d", ref, cwd=self.mirror)
        stores.sessions.end(WIDGETS, {session: max(attempts)}, "ended by a test", time.time())
        stores.database.close()
        return set(attempts.values())


@pytest.fixture(scope="module")
def recorded_state(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Path]:
    """A state directory with three sessions of two turns; do not write to it, copy it."""
    base = tmp_path_factory.mktemp("recorded")
    with HttpUpstream(base / "upstream") as upstream:
        upstream.add(WIDGETS, generated_bare)
        with Serve(base / "state", repos=[upstream.url(WIDGETS)], refresh=SETTLED).start() as serve:
            serve.wait_for_repo(WIDGETS)
            for session in SESSIONS:
                record_session(Node(serve, upstream), base / "guest", session)
            serve.terminate()
        yield base / "state"


@pytest.fixture
def stopped(recorded_state: Path, tmp_path: Path) -> Stopped:
    """A copy of that state directory for this test."""
    shutil.copytree(recorded_state, tmp_path / "state", ignore=shutil.ignore_patterns("run", "cache", "workspaces"))
    return Stopped(Layout(tmp_path / "state"), tmp_path / "backups")


def flip(path: Path) -> None:
    """Change one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_verification_names_the_file_in_which_one_byte_changed(stopped: Stopped) -> None:
    """Each kind of file; as it was, nothing is damaged."""
    stopped.back_up()
    kinds = ("manifests/*.json", "databases/*.db", "databases/*.audit-head", "bundles/*/*/*-history.bundle")
    for kind in (*kinds, "bundles/*/*/*-turns.bundle"):
        [path] = stopped.target.glob(kind)
        before = path.read_bytes()
        flip(path)
        assert stopped.faults() == [str(path.relative_to(stopped.target))]
        path.write_bytes(before[:-1])
        assert stopped.faults() == [str(path.relative_to(stopped.target))]
        path.write_bytes(before)
    assert stopped.faults() == []


def test_the_refs_of_older_backups_are_verified_too(stopped: Stopped) -> None:
    """Their bundles are those of the newest, which is fine, but what their refs name must be there as well."""
    stopped.back_up()
    directory, good = BackupDirectory(stopped.target), stopped.newest()
    recorded = good.repositories[WIDGETS]
    lacking = replace(recorded, refs={**recorded.refs, f"{AGENTS}s9": "1" * 40})
    directory.add(directory.stamp(), replace(good, repositories={WIDGETS: lacking}))
    older = replace(recorded, refs={f"{AGENTS}s1/below": recorded.refs[f"{AGENTS}s1"]})
    directory.add(directory.stamp(), replace(good, repositories={WIDGETS: older}))
    stopped.add_turn(90)
    stopped.back_up()
    assert stopped.faults() == [recorded.bundles[-1].file.path]


def test_a_damaged_backup_is_not_restored(stopped: Stopped, tmp_path: Path) -> None:
    """A damaged manifest is passed over; other damage is refused, and an older backup can be named."""
    stopped.back_up()
    first, held = stopped.newest().at, set(stopped.newest().files())
    stopped.add_turn(1000)
    stopped.back_up()
    [bundle] = [path for path in stopped.newest().files() if path not in held and path.endswith(".bundle")]
    flip(stopped.target / bundle)
    new = Layout(tmp_path / "new")
    with pytest.raises(GitmirrorError, match=re.escape(bundle)) as refused:
        restore(stopped.target, new, move_aside=False)
    assert "--before" in refused.value.hint
    assert not new.database.exists() and not new.mirrors.exists()
    assert restore(stopped.target, new, move_aside=False, before=first).at == first

    [*_, newest] = BackupDirectory(stopped.target).names()
    flip(stopped.target / "manifests" / newest)
    report = restore(stopped.target, Layout(tmp_path / "other"), move_aside=False)
    assert report.at == first and newest in report.skipped[0]


@pytest.mark.slow
def test_a_killed_backup_leaves_the_one_before(stopped: Stopped, tmp_path: Path) -> None:
    """At ten random moments; the next one removes what was left."""
    stopped.back_up()
    idle, argv = Serve(tmp_path / "x"), ["--state", str(stopped.layout.state), "backup", str(stopped.target)]

    def start_backup() -> ForkedProcess:
        # Forked, so that it is killed in its work and not while Python imports what it needs for that.
        with open(os.devnull, "r+b") as nothing:
            return ForkedProcess(argv, env=idle.env, cwd=ROOT, files=(nothing, nothing, nothing))

    start = time.monotonic()
    assert start_backup().wait(60) == 0
    takes, chance, killed = time.monotonic() - start, random.Random(24), 0
    for number in range(1000, 1100):
        if killed == 10:
            break
        stopped.add_turn(number)
        before, start = stopped.newest(), time.monotonic()
        process = start_backup()
        try:
            process.wait(chance.uniform(0.3, 1.0) * takes)
            # The machine has less to do than before, and the next ones are killed earlier.
            takes = min(takes, time.monotonic() - start)
        except subprocess.TimeoutExpired:
            killed += 1
        kill_group(process)
        assert stopped.newest().at >= before.at
        assert stopped.faults() == []
    assert killed == 10
    stopped.back_up()
    named = set().union(
        *(BackupDirectory(stopped.target).read(n).files() for n in BackupDirectory(stopped.target).names())
    )
    left = {str(path.relative_to(stopped.target)) for path in stopped.target.rglob("*") if path.is_file()}
    assert {path for path in left if not path.startswith("manifests/")} == named
    assert not list(stopped.layout.run.glob("database-copy-*"))
    assert set(recorded(stopped.mirror).values()) == set(stopped.newest().repositories[WIDGETS].refs.values())


def test_turns_of_ended_sessions_leave_the_bundles(stopped: Stopped, tmp_path: Path) -> None:
    """Once they are more than half of the bytes; the history is not written again. Without a session all goes."""
    stopped.back_up()
    first = stopped.newest().repositories[WIDGETS].bundles
    gone = stopped.end("s1")
    stopped.back_up()
    assert stopped.newest().repositories[WIDGETS].bundles == first
    gone |= stopped.end("s2")
    stopped.back_up()
    second = stopped.newest().repositories[WIDGETS].bundles
    assert second[0] == first[0] and second[0].kind == HISTORY
    assert not gone & {oid for bundle in second for oid in bundle.holds}
    assert stopped.faults() == []
    new = Layout(tmp_path / "new")
    restore(stopped.target, new, move_aside=False)
    assert recorded(new.mirror(WIDGETS)) == recorded(stopped.mirror)
    stopped.end("s3")
    stopped.back_up()
    assert not stopped.newest().repositories


def test_the_log_of_the_copy_decides_what_a_session_is(stopped: Stopped, tmp_path: Path) -> None:
    """Refs that were deleted after the copy are restored with the rows that the copy has of them."""
    before = recorded(stopped.mirror)
    git("update-ref", "--stdin", cwd=stopped.mirror, input="".join(f"delete {ref}\n" for ref in before))
    stopped.back_up()
    new = Layout(tmp_path / "new")
    restore(stopped.target, new, move_aside=False)
    assert recorded(new.mirror(WIDGETS)) == before


def test_a_missing_bundle_is_written_again(stopped: Stopped) -> None:
    """And what came after it; the report says so."""
    stopped.back_up()
    [turns] = stopped.target.glob("bundles/*/*/*-turns.bundle")
    turns.unlink()
    report = stopped.back_up()
    assert turns.name in str(report["problems"])
    assert all((stopped.target / path).exists() for path in stopped.newest().files())
    assert stopped.faults() == [str(turns.relative_to(stopped.target))], "the older backup is not made whole"
    assert not stopped.back_up()["problems"]


def test_a_mirror_that_is_damaged_keeps_what_was_backed_up(stopped: Stopped, tmp_path: Path) -> None:
    """Once it has something new it is named, and the backup goes on without it; so it is when the mirror is gone."""
    stopped.back_up()
    before = stopped.newest().repositories
    expected = recorded(stopped.mirror)
    stopped.add_turn(1000)
    (stopped.mirror / "HEAD").write_text("nonsense")
    report = stopped.back_up()
    assert WIDGETS in str(report["problems"]) and stopped.newest().repositories == before
    shutil.rmtree(stopped.mirror)
    assert not stopped.back_up()["problems"]
    new = Layout(tmp_path / "new")
    restore(stopped.target, new, move_aside=False)
    assert recorded(new.mirror(WIDGETS)) == expected


def test_a_turn_that_is_damaged_does_not_keep_the_others_out(stopped: Stopped) -> None:
    """It is named; the backup has the others, and the next one has it once it is whole."""
    broken, whole = stopped.add_turn(1000), stopped.add_turn(1001)
    path = stopped.mirror / "objects" / broken[:2] / broken[2:]
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:-4] + b"\0\0\0\0")
    report = stopped.back_up()
    assert f"{TURNS}1000" in str(report["problems"]) and f"{TURNS}1001" not in str(report["problems"])
    refs_now = stopped.newest().repositories[WIDGETS].refs
    assert whole in refs_now.values() and broken not in refs_now.values()
    assert stopped.faults() == []
    path.write_bytes(content)
    assert not stopped.back_up()["problems"]
    assert broken in stopped.newest().repositories[WIDGETS].refs.values()


def test_a_pack_that_is_damaged_is_not_taken_for_a_backup(stopped: Stopped) -> None:
    """git would copy what lies there as it is; what earlier bundles hold stays."""
    stopped.back_up()
    before = stopped.newest().repositories
    noise = random.Random(1).randbytes(50_000).hex()
    blob = git("hash-object", "-w", "--stdin", cwd=stopped.mirror, input=noise)
    tree = git("mktree", cwd=stopped.mirror, input=f"100644 blob {blob}\tnoise\n")
    commit = git("commit-tree", tree, "-p", "main", "-m", "noise", cwd=stopped.mirror)
    git("update-ref", f"{TURNS}1000", commit, cwd=stopped.mirror)
    packs = set(stopped.mirror.glob("objects/pack/*.pack"))
    git("repack", "-q", "-d", "--no-write-bitmap-index", cwd=stopped.mirror)
    [pack] = set(stopped.mirror.glob("objects/pack/*.pack")) - packs
    pack.chmod(0o644)
    flip(pack)
    report = stopped.back_up()
    assert WIDGETS in str(report["problems"])
    assert stopped.newest().repositories == before and stopped.faults() == []


def test_a_directory_with_the_backups_of_another_log_is_refused(stopped: Stopped, tmp_path: Path) -> None:
    """Those of another node, and those made after the one that was restored."""
    stopped.back_up()
    older = Layout(tmp_path / "older")
    restore(stopped.target, older, move_aside=False)
    stopped.end("s1")
    stopped.back_up()
    held = {path: path.read_bytes() for path in stopped.target.rglob("*") if path.is_file()}
    with pytest.raises(GitmirrorError, match="another node"):
        Stopped(older, stopped.target).back_up()
    assert {path: path.read_bytes() for path in stopped.target.rglob("*") if path.is_file()} == held


def test_what_was_private_stays_private(stopped: Stopped, tmp_path: Path) -> None:
    """The mark of a mirror that was fetched with a credential is restored before anything is in it."""
    (stopped.mirror / MARK).write_text("https://host/acme/widgets\n")
    stopped.back_up()
    new = Layout(tmp_path / "new")
    restore(stopped.target, new, move_aside=False)
    assert (new.mirror(WIDGETS) / MARK).read_text() == "https://host/acme/widgets\n"


def test_the_directory_is_made_and_its_parents_are_not(stopped: Stopped, tmp_path: Path) -> None:
    """So a disk that is not mounted is an error."""
    with pytest.raises(GitmirrorError, match="does not exist"):
        stopped.back_up(tmp_path / "not-mounted" / "backups")
    assert not (tmp_path / "not-mounted").exists()


def test_an_interrupted_restore_is_begun_anew(
    stopped: Stopped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it left does not make the state directory a used one."""
    stopped.back_up()
    new = Layout(tmp_path / "new")
    with monkeypatch.context() as patched:
        patched.setattr(Children, "start", _fail)
        with pytest.raises(GitmirrorError):
            restore(stopped.target, new, move_aside=False)
    assert not new.database.exists()
    restore(stopped.target, new, move_aside=False)
    assert recorded(new.mirror(WIDGETS)) == recorded(stopped.mirror)
    assert sorted(path.name for path in new.state.iterdir()) == ["audit-head", "gitmirror.db", "mirrors", "run"]


def _fail(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_files_of_others_are_not_touched(stopped: Stopped) -> None:
    """Temporary files go, and files that no manifest names, but for the latter while a manifest is damaged."""
    stopped.back_up()
    theirs = [
        stopped.target / "README",
        stopped.target / "databases" / "mine.db",
        stopped.target / "manifests" / "x.json",
    ]
    for path in theirs:
        path.write_text("mine")
    temporary = stopped.target / "databases" / ".20200101T000000.000000Z.db.new"
    unnamed = stopped.target / "bundles" / "acme" / "widgets" / "20200101T000000.000000Z-turns.bundle"
    for path in (temporary, unnamed):
        path.write_text("left")
    [name] = BackupDirectory(stopped.target).names()
    manifest = stopped.target / "manifests" / name
    content = manifest.read_bytes()
    flip(manifest)
    assert BackupDirectory(stopped.target).tidy() == 1
    assert not temporary.exists() and unnamed.exists()
    manifest.write_bytes(content)
    assert BackupDirectory(stopped.target).tidy() == 1
    assert not unnamed.exists() and all(path.exists() for path in theirs)
    assert stopped.faults() == []


def test_old_backups_go(stopped: Stopped, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their databases; bundles stay as long as a backup needs them."""
    monkeypatch.setattr(directory_module, "NEWEST_KEPT", 2)
    for _ in range(4):
        stopped.back_up()
    assert len(BackupDirectory(stopped.target).names()) == 2
    assert len(list(stopped.target.glob("databases/*.db"))) == 2
    assert stopped.faults() == []


def test_which_backups_are_kept() -> None:
    """The newest, and the last of each of the days before."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    hours = [start + timedelta(hours=hour) for hour in range(24 * 60)]
    names = [f"{hour.strftime('%Y%m%dT%H%M%S.%fZ')}-0123456789abcdef.json" for hour in hours]
    kept = kept_names(names)
    assert set(names[-24:]) <= kept
    assert sorted(name[:8] for name in kept - set(names[-24:])) == [
        (start + timedelta(days=day)).strftime("%Y%m%d") for day in range(29, 59)
    ]
    assert all(name[9:11] == "23" for name in kept - set(names[-24:]))
    assert kept_names([]) == set()


@pytest.mark.parametrize(
    ("sizes", "wanted", "kept"),
    [
        ([10, 10], {"1", "2"}, 3),
        ([10, 10], {"2"}, 3),
        ([10, 11], {"1"}, 1),
        ([1] * 500, {str(number) for number in range(1, 501)}, 1),
    ],
)
def test_when_bundles_are_written_anew(sizes: list[int], wanted: set[str], kept: int) -> None:
    """When more than half of the bytes of turns are gone, or there are too many; the history stays."""
    chain = (
        Bundle(StoredFile("h", 1000, ""), HISTORY, ("0",), ()),
        *(Bundle(StoredFile("t", size, ""), TURNS_KIND, (str(n),), ()) for n, size in enumerate(sizes, 1)),
    )
    assert worth_keeping(chain, wanted) == chain[:kept]


def test_a_clock_that_goes_back_does_not_change_the_order(stopped: Stopped) -> None:
    """The newest backup is the one that was made last."""
    directory = BackupDirectory(stopped.target)
    (stopped.target / "manifests").mkdir(parents=True)
    (stopped.target / "manifests" / "21000101T000000.000000Z-0123456789abcdef.json").write_text("{}")
    assert directory.stamp() == "21000101T000000.000001Z"


def test_bundles_can_be_used_without_gitmirror(stopped: Stopped, tmp_path: Path) -> None:
    """Plain `git fetch` takes them, in order."""
    stopped.back_up()
    bare = tmp_path / "bare.git"
    git("init", "--quiet", "--bare", str(bare))
    for bundle in stopped.newest().repositories[WIDGETS].bundles:
        git("fetch", "--quiet", str(stopped.target / bundle.file.path), "refs/*:refs/*", cwd=bare)
    assert recorded(stopped.mirror).items() <= refs(bare).items()


def test_a_backup_without_news_runs_no_git(stopped: Stopped, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand repositories would take minutes of it, each hour."""
    stopped.back_up()
    before = stopped.newest().repositories
    monkeypatch.setattr(Children, "start", _fail)
    assert not stopped.back_up()["problems"]
    assert stopped.newest().repositories == before


def test_a_database_that_is_damaged_is_not_backed_up(stopped: Stopped) -> None:
    """Neither when SQLite notices it, nor when the chain of the log alone does; the advice names the backups."""
    stopped.back_up()
    [name] = BackupDirectory(stopped.target).names()
    sound = stopped.layout.database.read_bytes()
    with closing(sqlite3.connect(stopped.layout.database)) as database:
        [(push,)] = database.execute("SELECT push FROM audit_events WHERE id = 1")
    forged = sound.replace(push.encode(), push[::-1].encode())
    scrambled = bytearray(sound)
    for page in range(4096 * 8, len(sound), 4096):
        scrambled[page : page + 8] = b"\xff" * 8
    for content in (forged, bytes(scrambled)):
        stopped.layout.database.write_bytes(content)
        # The first backup of a day walks the whole log.
        manifest = stopped.target / "manifests" / name
        yesterday = stopped.newest().encode().replace(stopped.newest().at.encode(), b"2020-01-01T00:00:00.000Z")
        manifest.unlink()
        name = name_of(name.partition("-")[0], yesterday)
        (stopped.target / "manifests" / name).write_bytes(yesterday)
        with pytest.raises(DatabaseLost, match=r"is damaged|is malformed") as refused:
            stopped.back_up()
        advice = remedy(refused.value, stopped.layout.state, str(stopped.target))
        assert f"restore {stopped.target} --state {stopped.layout.state} --database --yes" in advice
        assert BackupDirectory(stopped.target).names() == [name]


def test_the_lock_of_a_ref_is_no_ref(stopped: Stopped) -> None:
    """While git writes a ref, its lock already has the new object id; with it the backup could not be restored."""
    tip = stopped.add_turn(1000)
    (stopped.mirror / f"{AGENTS}s9.lock").write_text(f"{tip}\n")
    stopped.back_up()
    assert not [ref for ref in stopped.newest().repositories[WIDGETS].refs if ref.endswith(".lock")]
