"""How the file starts: unpacking, whatever happens to it, and where."""

from __future__ import annotations

import ast
import fcntl
import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from appliance import __version__
from tests.pyz.conftest import Packed
from tests.support.gitutil import wait_until
from tests.support.serve import ROOT

LAUNCHER = ROOT / "scripts" / "pyz" / "_launcher.py"
PLACES = LAUNCHER.with_name("_places.py")


def works(packed: Packed) -> bool:
    """Whether the file starts, and everything that it should have unpacked is there in full."""
    done = packed.run("--version")
    assert done.returncode == 0, done.stderr
    [place] = packed.unpacked
    with zipfile.ZipFile(packed.file) as archive:
        whole = all(
            (place / entry.filename).stat().st_size == entry.file_size
            for entry in archive.infolist()
            if entry.filename.startswith("site-packages/")
        )
    return whole and done.stdout.startswith(f"gitmirror {__version__}")


def start(packed: Packed) -> subprocess.Popen[bytes]:
    """Starts it without waiting."""
    env = {"SHIV_ROOT": str(packed.root), "PATH": os.defpath}
    return subprocess.Popen([sys.executable, packed.file, "--version"], env=env, stdout=subprocess.PIPE)


@pytest.mark.slow
def test_many_first_starts_at_once(fresh: Packed) -> None:
    """One unpacks, the others wait for it."""
    processes = [start(fresh) for _ in range(8)]
    outputs = {process.communicate(timeout=60)[0] for process in processes}
    assert len(outputs) == 1 and outputs.pop().startswith(b"gitmirror ")
    assert works(fresh)


def test_killed_while_unpacking(fresh: Packed) -> None:
    """The next start begins again."""
    process = start(fresh)
    wait_until(lambda: any(fresh.root.glob("*.tmp/site-packages/*")), message="unpacking begins")
    process.kill()
    process.communicate()
    assert works(fresh)


def test_power_cut_after_unpacking(fresh: Packed) -> None:
    """Without the marker that comes last, files may be empty, and none is trusted."""
    assert works(fresh)
    [place] = fresh.unpacked
    (place / "complete").unlink()
    os.truncate(place / "site-packages" / "click" / "core.py", 0)
    (place / "site-packages" / "textual" / "app.py").unlink()
    assert works(fresh)
    assert (place / "complete").exists()


def test_older_versions_are_removed_when_unused(fresh: Packed) -> None:
    """What a process runs from stays, and so does what is not ours."""
    unused, used, foreign = (fresh.root / name for name in ("gitmirror.pyz_0", "gitmirror.pyz_1", "other.pyz_0"))
    cut_short = fresh.root / "gitmirror.pyz_2.tmp"
    for place in (unused, used, foreign, cut_short):
        (place / "site-packages").mkdir(parents=True)
        (place / "complete").touch()
    held = os.open(used, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    try:
        assert fresh.run("--version").returncode == 0
        assert not unused.exists() and not cut_short.exists()
        assert (used / "complete").exists() and foreign.exists()
    finally:
        os.close(held)


def test_a_running_process_holds_what_it_runs_from(fresh: Packed) -> None:
    """So that a newer version does not take its modules away."""
    assert works(fresh)
    [place] = fresh.unpacked
    env = {"SHIV_ROOT": str(fresh.root), "SHIV_INTERPRETER": "1", "PATH": os.defpath}
    code = "import sys; print('running', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, fresh.file, "-c", code], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    held = os.open(place, os.O_RDONLY)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"running\n"
        with pytest.raises(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.communicate(timeout=60)
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        process.kill()
        process.communicate()
        os.close(held)


def test_packages_of_the_host_are_not_used(fresh: Packed, tmp_path: Path) -> None:
    """Neither from PYTHONPATH nor from where it is started."""
    (tmp_path / "click").mkdir()
    (tmp_path / "click" / "__init__.py").write_text("raise SystemExit('the wrong click')\n")
    done = fresh.run("--licenses", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_modules_load_after_unpacking_below_a_closed_umask(fresh: Packed) -> None:
    """A command that root runs becomes another user, who must be able to read the rest of the packages."""
    env = {"SHIV_ROOT": str(fresh.root), "PATH": os.defpath}
    subprocess.run([sys.executable, fresh.file, "--version"], env=env, umask=0o077, check=True, capture_output=True)
    [place] = fresh.unpacked
    closed = [path for path in (place, *place.rglob("*")) if path.name != "__pycache__" and path.suffix != ".pyc"]
    assert [path for path in closed if path.stat().st_mode & 0o044 != 0o044] == []


def test_no_place_to_unpack(fresh: Packed) -> None:
    """A sentence that says what was tried and what to set, and no traceback."""
    fresh.root.parent.mkdir(parents=True)
    fresh.root.write_text("a file is in the way")
    done = fresh.run("--version")
    assert done.returncode == 1
    assert str(fresh.root) in done.stderr and "SHIV_ROOT" in done.stderr
    assert "Traceback" not in done.stderr


def test_through_a_link_and_from_elsewhere(fresh: Packed, tmp_path: Path) -> None:
    """Its own name counts, not that of the link; a relative SHIV_ROOT is where it was started."""
    link = tmp_path / "bin" / "gm"
    link.parent.mkdir()
    link.symlink_to(fresh.file)
    env = {"SHIV_ROOT": "here", "PATH": os.defpath}
    subprocess.run([sys.executable, link, "--version"], env=env, cwd=tmp_path, check=True, capture_output=True)
    assert [path.name.partition("_")[0] for path in (tmp_path / "here").glob("g*")] == [fresh.file.name]


def test_runs_as_a_program(fresh: Packed, tmp_path: Path) -> None:
    """By its first line, with the `python3` of PATH."""
    (tmp_path / "python3").symlink_to(sys.executable)
    env = {"SHIV_ROOT": str(fresh.root), "PATH": f"{tmp_path}:{os.defpath}"}
    done = subprocess.run([fresh.file, "--version"], env=env, check=True, capture_output=True)
    assert done.stdout.startswith(b"gitmirror ")


@pytest.mark.parametrize("minor", [11, 12, 13, 14])
def test_other_interpreters(packed: Packed, minor: int) -> None:
    """The same file, and the same unpacked packages, on every version there is here."""
    # On PATH, or beside ours or the `python3` of PATH, when every version has a directory of its own.
    beside = [
        str(path)
        for known in filter(None, (sys.executable, executable("python3")))
        for path in sorted(Path(known).resolve().parents[2].glob(f"3.{minor}.*/bin/python3"))
    ]
    python = next(filter(executable, [f"python3.{minor}", *beside]), None)
    if python is None:
        pytest.skip(f"no Python 3.{minor} here")
    for arguments in (["--version"], ["--licenses"], ["--help"]):
        done = packed.run(*arguments, python=(python,), PYTHONDONTWRITEBYTECODE="1")
        assert done.returncode == 0, done.stderr


def executable(python: str) -> str | None:
    """The path of an interpreter that runs; a name on PATH may be a shim of a version that is not chosen."""
    try:
        done = subprocess.run([python, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def test_an_older_interpreter_can_read_the_launcher() -> None:
    """It says what is needed; a syntax that the old one does not know would say nothing."""
    for path in (LAUNCHER, PLACES):
        ast.parse(path.read_text(), feature_version=(3, 7))


@pytest.fixture
def places() -> ModuleType:
    """What the launcher knows of directories, as a module."""
    spec = importlib.util.spec_from_file_location("_places", PLACES)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("user", "environment", "roots"),
    [
        (1000, {"SHIV_ROOT": "/srv/shiv", "HOME": "/home/u"}, ["/srv/shiv"]),
        (1000, {"SHIV_ROOT": "~/shiv", "HOME": "/home/u"}, ["/home/u/shiv"]),
        (1000, {"SHIV_ROOT": "", "HOME": "/home/u"}, ["/home/u/.shiv", "/tmp/gitmirror-1000"]),
        (1000, {"HOME": "/home/u", "TMPDIR": "/scratch"}, ["/home/u/.shiv", "/scratch/gitmirror-1000"]),
        (0, {"HOME": "/root"}, ["/var/cache/gitmirror-root", "/root/.shiv", "/tmp/gitmirror-0"]),
    ],
)
def test_where_it_unpacks(
    places: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    user: int,
    environment: dict[str, str],
    roots: list[str],
) -> None:
    """SHIV_ROOT, the home, a private place; for root one that others can read first."""
    monkeypatch.delenv("TMPDIR", raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("os.geteuid", lambda: user)
    assert places.roots() == roots


def test_no_home(places: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who is in no list of users and has no HOME still has a place."""
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.setattr("os.geteuid", lambda: 54321)
    assert places.roots() == ["/tmp/gitmirror-54321"]


def test_the_private_place_is_ours_alone(places: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever is first to make it could put code there."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    place = tmp_path / f"gitmirror-{os.geteuid()}"
    assert not places.is_safe(str(place))
    place.mkdir(mode=0o755)
    assert places.is_safe(str(place))
    place.chmod(0o775)
    assert not places.is_safe(str(place))
    place.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o755)
    place.symlink_to(tmp_path / "elsewhere")
    assert not places.is_safe(str(place))
    monkeypatch.setattr("os.geteuid", lambda: 54321)
    (tmp_path / "gitmirror-54321").mkdir(mode=0o755)
    assert not places.is_safe(str(tmp_path / "gitmirror-54321"))
