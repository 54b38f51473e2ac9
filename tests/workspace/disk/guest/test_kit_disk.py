"""A workspace of drives: in every form, in every shell, wherever DIR is, and only if the drives are whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.gitutil import git
from tests.workspace.conftest import EVERY_SHELL, Guest
from tests.workspace.disk.drives_lab import DATA_ID, SECTOR, Drives, Machine, make_ext4
from tests.workspace.disk.guest.conftest import UPSTREAM, MakeDrives

BLOCK = 4096


def assert_whole(machine: Machine, workspace: Path, commit: str, *, history: str = "full") -> None:
    """It is a clean checkout of `commit`, the only mount, with nothing beside or below it."""
    assert machine.mounts() == [str(workspace.resolve()).replace("\\", "\\134").replace(" ", "\\040")]
    assert machine.run("git", "rev-parse", "HEAD", cwd=workspace) == commit
    assert machine.run("git", "status", "--porcelain", "--ignored", cwd=workspace) == ""
    machine.run("git", "fsck", "--strict", cwd=workspace)
    count = len(machine.run("git", "rev-list", "HEAD", cwd=workspace).splitlines())
    assert count > 1 if history == "full" else count == 1
    names = [path.name for path in (*workspace.parent.iterdir(), *workspace.iterdir())]
    assert not [name for name in names if name.startswith(".gitmirror")]


def tip_of(bare: Path) -> str:
    """The commit of the drives."""
    return git("rev-parse", "refs/heads/main", cwd=bare)


@pytest.mark.parametrize(
    ("form", "history", "shell"),
    [
        ("erofs", "full", "dash"),
        ("ext4", "full", "busybox"),
        *[
            pytest.param(*words, marks=pytest.mark.slow)
            for words in (
                *[("erofs", "full", shell) for shell in EVERY_SHELL if shell != "dash"],
                ("erofs", "tip", "dash"),
                ("erofs-single", "full", "dash"),
                ("ext4", "tip", "dash"),
            )
        ],
    ],
)
def test_a_workspace_of_drives(
    machine: Machine, lone_guest: Guest, made: MakeDrives, planted_bare: Path, form: str, history: str, shell: str
) -> None:
    """It is mounted on DIR without a mirror, can be changed, and goes with `umount DIR`."""
    env = {"GITMIRROR_UPSTREAM": "", "GITMIRROR_DRIVES": machine.drives(made(form, history))}
    guest = machine.guest(Guest(lone_guest.home, lone_guest.kit, shell, None, lone_guest.env), **env)
    workspace = guest.home / "ws"
    done = guest.hydrate(workspace)
    assert done.hydrated(via="disk") == tip_of(planted_bare)
    assert done.err == ""
    assert_whole(machine, workspace, tip_of(planted_bare), history=history)
    config = machine.run("git", "config", "--list", "--local", cwd=workspace).splitlines()
    assert {f"remote.origin.url={UPSTREAM}", f"gitmirror.repository={WIDGETS}"} <= set(config)
    assert {"gc.auto=0", "maintenance.auto=false"} <= set(config)
    assert list((machine.path(workspace) / ".git" / "hooks").iterdir()) == []
    assert f"gitmirror.base={tip_of(planted_bare)}" in config
    assert not [line for line in config if "promisor" in line]
    (machine.path(workspace) / "new.txt").write_text("new\n")
    assert machine.run("git", "status", "--porcelain", cwd=workspace) == "?? new.txt"
    machine.run("umount", str(workspace))
    assert machine.mounts() == [] and list(workspace.iterdir()) == []
    # The empty directory that remains can be filled again.
    guest.hydrate(workspace).hydrated(via="disk")
    assert_whole(machine, workspace, tip_of(planted_bare), history=history)


def test_drives_are_found_by_their_text(machine: Machine, lone_guest: Guest, made: MakeDrives, tmp_path: Path) -> None:
    """Without GITMIRROR_DRIVES, whichever devices they are; other repositories' drives are named, not used."""
    repository = f"acme/found-{tmp_path.name}"
    files = [Path(shutil.copy(path, tmp_path / path.name)) for path in made("erofs").paths]
    drives = Drives(*files)
    drives.rewrite(repository=repository)
    for path in reversed(files):
        machine.attach(path)
    env = {key: value for key, value in lone_guest.env.items() if key != "GITMIRROR_DRIVES"}
    guest = Guest(lone_guest.home, lone_guest.kit, lone_guest.shell, None, env)
    guest.hydrate(guest.home / "ws", repo=repository).hydrated(via="disk")
    done = guest.hydrate(guest.home / "other", repo=f"{repository}-2")
    assert done.hydrated(via="upstream")
    assert "not using the drives: they hold " in done.err and repository in done.err
    assert lone_guest.hydrate(guest.home / "off", repo=repository).hydrated(via="upstream")


PLACES = ["a b", "a,b", "a:b", "a\\b", "é=upperdir", "-o", "deep/er/ws", "'q\""]


@pytest.mark.parametrize(
    "name", [PLACES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in PLACES[1:])], ids=str
)
def test_the_name_of_dir_does_not_matter(machine: Machine, lone_guest: Guest, made: MakeDrives, name: str) -> None:
    """It is no part of the options of a mount."""
    guest = lone_guest.with_(GITMIRROR_DRIVES=machine.drives(made("erofs-single")))
    commit = guest.hydrate(name).hydrated(via="disk")
    assert machine.run("git", "rev-parse", "HEAD", cwd=guest.home / name) == commit
    # It is put into the environment, and not into the script, as it is.
    machine.run("umount", "--", str(guest.home / name))
    assert machine.mounts() == [] and list((guest.home / name).iterdir()) == []


@pytest.mark.slow
def test_dir_may_be_relative_a_link_or_a_mount_point(machine: Machine, lone_guest: Guest, made: MakeDrives) -> None:
    """Also below a shared mount, where mounts cannot be moved."""
    guest = lone_guest.with_(GITMIRROR_DRIVES=machine.drives(made("erofs-single")))
    machine.run("mount", "--make-rshared", "/")
    (guest.home / "real").mkdir()
    (guest.home / "link").symlink_to("real")
    guest.hydrate("link/").hydrated(via="disk")
    machine.run("umount", str(guest.home / "real"))
    (guest.home / "point").mkdir()
    machine.run("mount", "-t", "tmpfs", "none", str(guest.home / "point"))
    guest.hydrate("./point").hydrated(via="disk")
    machine.run("git", "status", cwd=guest.home / "point")
    assert machine.mounts() == [str(guest.home / "point")]
    machine.run("umount", str(guest.home / "point"))
    assert machine.mounts() == [] and machine.run("ls", "-A", str(guest.home / "point")) == ""


def test_the_current_directory_is_not_mounted_over(machine: Machine, lone_guest: Guest, made: MakeDrives) -> None:
    """Whoever is in it would not see the workspace, so another source is taken."""
    guest = lone_guest.with_(GITMIRROR_DRIVES=machine.drives(made("erofs-single")))
    (guest.home / "ws").mkdir()
    done = guest.run(f"cd ws; gitmirror_hydrate {WIDGETS} .; git status >&2")
    assert done.hydrated(via="upstream")
    assert "cannot be mounted on the current directory" in done.err and machine.mounts() == []


@pytest.mark.slow
def test_the_umask_decides_who_gets_in(machine: Machine, lone_guest: Guest, made: MakeDrives) -> None:
    """The files keep the modes that they have on the drive, so DIR itself keeps others out."""
    guest = lone_guest.with_(GITMIRROR_DRIVES=machine.drives(made("erofs-single")))
    guest.run(f"umask 077; gitmirror_hydrate {WIDGETS} closed").hydrated(via="disk")
    guest.hydrate("open").hydrated(via="disk")
    modes = machine.run("stat", "-c", "%a", str(guest.home / "closed"), str(guest.home / "open"))
    assert modes.split() == ["700", "755"]


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))


def cut(path: Path, count: int = BLOCK) -> None:
    """Remove bytes from the end."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - count)


def grow(path: Path) -> None:
    """Append a sector."""
    with path.open("ab") as file:
        file.write(bytes(SECTOR))


def data_of(drives: Drives) -> Path:
    """The data drive."""
    assert drives.data
    return drives.data


def scribble(path: Path) -> None:
    """Destroy the superblock, which the kit leaves to the kernel."""
    with path.open("r+b") as file:
        file.seek(1024)
        file.write(b"\xff" * 1024)


REFUSALS: dict[str, tuple[Callable[[Drives], object], str]] = {
    "truncated": (lambda drives: cut(drives.tree), "bytes long"),
    "longer": (lambda drives: grow(drives.tree), "bytes long"),
    "damaged": (lambda drives: flip(drives.tree), "it is damaged: its checksum does not match"),
    "foreign": (lambda drives: drives.rewrite(repository="acme/other"), "they hold acme/other, not acme/widgets"),
    "no data": (lambda drives: data_of(drives).write_bytes(bytes(BLOCK)), f"its data drive, {DATA_ID}, is missing"),
    "other data": (lambda drives: drives.rewrite(data="other 4096"), "its data drive, other, is missing"),
    "short data": (lambda drives: cut(data_of(drives)), "has less than"),
    "other commit": (lambda drives: drives.rewrite(commit="1" * 40), "its HEAD is "),
    "no commit": (lambda drives: drives.rewrite(commit=None), "its text is incomplete"),
    "no size": (lambda drives: drives.rewrite(size=None), "its text is incomplete"),
    "no number": (lambda drives: drives.rewrite(size="1e9"), "its text is incomplete"),
    "other format": (lambda drives: drives.rewrite(format="xfs"), "this kit does not know its format"),
    "other file system": (lambda drives: drives.rewrite(format="ext4"), "mount: "),
    "no file system": (lambda drives: scribble(drives.tree), "mount: "),
    "no text": (lambda drives: drives.tree.write_bytes(bytes(BLOCK)), "is not a gitmirror drive"),
    "a later version": (
        lambda drives: drives.tree.write_bytes(drives.tree.read_bytes().replace(b"disk 1", b"disk 2", 1)),
        "this kit does not know its version",
    ),
}


@pytest.mark.parametrize("fault", REFUSALS)
def test_drives_that_are_not_whole_are_not_used(
    machine: Machine, lone_guest: Guest, made: MakeDrives, tmp_path: Path, fault: str
) -> None:
    """One line says why, nothing is left mounted, and the next source is taken."""
    drives = Drives(*[Path(shutil.copy(path, tmp_path / path.name)) for path in made("erofs").paths])
    spoil, message = REFUSALS[fault]
    spoil(drives)
    guest = lone_guest.with_(GITMIRROR_DRIVES=machine.drives(drives))
    done = guest.hydrate(guest.home / "ws")
    done.hydrated(via="upstream")
    said = [line for line in done.err.splitlines() if "fetching from" not in line]
    assert message in done.err
    assert len(said) == 1 or fault in ("no data", "no text"), said
    assert machine.mounts() == []
    assert git("status", "--porcelain", cwd=guest.home / "ws") == ""


def test_devices_that_cannot_be_read_are_named(machine: Machine, lone_guest: Guest, tmp_path: Path) -> None:
    """A missing device, a file, and an upper that is none."""
    (tmp_path / "file").write_text("gitmirror disk 1\n")
    done = lone_guest.with_(GITMIRROR_DRIVES=f"/dev/missing,{tmp_path}/file").hydrate("ws")
    done.hydrated(via="upstream")
    assert done.err.count("cannot be read, or is not a block device") == 2


def test_a_data_drive_alone_is_not_used(machine: Machine, lone_guest: Guest, made: MakeDrives) -> None:
    """It is named, because somebody attached it."""
    done = lone_guest.with_(GITMIRROR_DRIVES=machine.attach(data_of(made("erofs")))).hydrate("ws")
    done.hydrated(via="upstream")
    assert "not using the drives: a data drive is attached, but no tree drive" in done.err


@pytest.mark.parametrize("lost", ["sys_admin", "mount", "cksum"])
def test_a_guest_that_may_not_or_cannot_mount(machine: Machine, lone_guest: Guest, made: MakeDrives, lost: str) -> None:
    """Without the right to mount, or without a program for it, the next source is taken."""
    guest = lone_guest.with_(GITMIRROR_DRIVES=machine.drives(made("erofs")))
    if lost == "sys_admin":
        if shutil.which("setpriv") is None:
            pytest.skip("there is no setpriv")
        start, _, shell = guest.shell.rpartition(" ")
        guest.shell = f"{start} setpriv --bounding-set=-sys_admin --inh-caps=-all {shell}"
    else:
        guest.tools = tuple({"dd", "umount", "mount", "cksum"} - {lost})
    done = guest.hydrate("ws")
    done.hydrated(via="upstream")
    assert machine.mounts() == []
    assert ("not using the drive" in done.err) and (lost == "sys_admin" or lost in done.err)


def test_sizes_beyond_32_bits(machine: Machine, lone_guest: Guest, tmp_path: Path) -> None:
    """mksh has arithmetic of 32 bits, and drives have terabytes."""
    size = 3_000_004_300_800
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size)
    device = machine.attach(tmp_path / "large")
    more, less = (size - 1, size - (1 << 32)), (size + 1, size + (1 << 32))
    cases = [(size, "same"), *((number, "more") for number in more), *((number, "less") for number in less)]
    script = "gitmirror__begin\n" + "".join(
        f'gitmirror__compare_size {device} {wanted}; echo "$than"\n' for wanted, _ in cases
    )
    for shell in EVERY_SHELL:
        guest = Guest(lone_guest.home, lone_guest.kit, shell, None, lone_guest.env)
        assert guest.run(script).out.split() == [than for _, than in cases], shell


def test_changes_may_go_to_a_disk_of_the_machine(
    machine: Machine, lone_guest: Guest, made: MakeDrives, tmp_path: Path
) -> None:
    """GITMIRROR_UPPER is an ext4; each hydration has a directory of its own there, and one that fails leaves none."""
    upper = tmp_path / "upper"
    make_ext4(upper, 64 << 20)
    device = machine.attach(upper, writable=True)
    drives = made("erofs")
    guest = lone_guest.with_(GITMIRROR_DRIVES=machine.drives(drives), GITMIRROR_UPPER=device)
    guest.hydrate("one").hydrated(via="disk")
    guest.hydrate("two").hydrated(via="disk")
    (machine.path(guest.home) / "one" / "kept.txt").write_text("kept\n")
    assert machine.run("git", "status", "--porcelain", cwd=guest.home / "two") == ""
    # The mirror cannot be reached, so there is no session.
    assert guest.hydrate("three", "session:none").code == 1
    machine.run("umount", str(guest.home / "one"), str(guest.home / "two"))
    assert machine.mounts() == []
    (tmp_path / "look").mkdir()
    machine.run("mount", "-t", "ext4", device, str(tmp_path / "look"))
    places = machine.run("sh", "-c", f"cd {tmp_path}/look && echo gitmirror.disk.*").split()
    assert len(places) == 2
    texts = [machine.path(tmp_path / "look" / place / "upper" / "kept.txt") for place in places]
    assert [text.read_text() for text in texts if text.exists()] == ["kept\n"]
    machine.run("umount", str(tmp_path / "look"))
    bad = guest.with_(GITMIRROR_UPPER="/dev/missing").hydrate("four")
    bad.hydrated(via="upstream")
    assert "GITMIRROR_UPPER, /dev/missing, cannot be mounted and written" in bad.err
