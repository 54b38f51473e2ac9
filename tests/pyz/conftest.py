"""The built file, made once in a session, and a small checkout to build and run from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.gitutil import clean_env, git
from tests.support.serve import ROOT

MAN_PAGE = "docs/gitmirror.1"
MakeOnce = Callable[[str, Callable[[Path], object]], Path]


def build_pyz(
    checkout: Path, output: Path | None = None, *, env: Mapping[str, str] | None = None, umask: int = 0o022
) -> Path:
    """Runs the checkout's build script from somewhere else, and returns the path of what it made."""
    done = subprocess.run(
        [checkout / "scripts" / "build_pyz.sh", *([output] if output else [])],
        cwd="/",
        env={**os.environ, **(env or {})},
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    return output or checkout / "dist" / "gitmirror.pyz"


@dataclass(frozen=True)
class Packed:
    """The built file as a user runs it, unpacking below `root`."""

    file: Path
    root: Path

    def run(
        self, *arguments: str, python: tuple[str, ...] = (sys.executable,), **extra: str | None
    ) -> subprocess.CompletedProcess[str]:
        """Runs it with `arguments`, in an environment that takes nothing from this machine, and `extra` of it."""
        env = clean_env(self.root.parent, **{"SHIV_ROOT": str(self.root), **extra})
        return subprocess.run(
            [*python, self.file, *arguments], env=env, capture_output=True, text=True, check=False, timeout=60
        )

    @property
    def unpacked(self) -> list[Path]:
        """The directories that files of this name have been unpacked into."""
        return sorted(self.root.glob(f"{self.file.name}_*"))


@pytest.fixture(scope="session")
def pyz(make_once: MakeOnce) -> Path:
    """gitmirror.pyz, built from this checkout by its script. Not to be written to."""
    return make_once("gitmirror.pyz", lambda path: build_pyz(ROOT, path))


@pytest.fixture
def packed(pyz: Path, shared_directory: Path) -> Packed:
    """The built file, unpacked where every test of the session may find it unpacked already."""
    return Packed(pyz, shared_directory / "shiv")


@pytest.fixture
def fresh(pyz: Path, tmp_path: Path) -> Packed:
    """The built file, never unpacked yet."""
    return Packed(pyz, tmp_path / "fresh" / "shiv")


@pytest.fixture(scope="session")
def checkout(make_once: MakeOnce, pyz: Path) -> Path:
    """A repository with the files of this checkout in one commit on `main`, built. Not to be written to: clone it.

    The tests and the pages, which are most of the files, are not among them: nothing here reads them.
    Building in it fetches nothing: it has the environment and the wheels that building `pyz` has fetched.
    """

    def make(path: Path) -> None:
        env = clean_env(path.parent)
        listed = git("-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z", env={**env, **_TRUSTING})
        for name in filter(None, listed.split("\0")):
            source, target = ROOT / name, path / name
            if source.is_file() and (name == MAN_PAGE or not name.startswith(("tests/", "docs/"))):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
                target.chmod(source.stat().st_mode & 0o777)
        git("init", "--quiet", "--initial-branch=main", str(path), env=env)
        git("-C", str(path), "add", "--all", env=env)
        git("-C", str(path), "commit", "--quiet", "--message=all of it", env=env)
        lend_build_directory(path)
        build_pyz(path)

    return make_once("checkout", make)


def lend_build_directory(path: Path) -> None:
    """Gives the checkout at `path` what this one's build script has fetched, so that it need not fetch it."""
    build = path / "build"
    build.mkdir()
    for fetched in ((ROOT / "build" / "venv"), *(ROOT / "build").glob("wheels-*")):
        (build / fetched.name).symlink_to(fetched)


# The checkout under test may belong to another user than the one who runs the tests.
_TRUSTING = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
