"""The file itself: how it is made, what is in it, and how it starts."""

from __future__ import annotations

import re
import shutil
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from appliance import __version__
from tests.pyz.conftest import Packed, build_pyz, lend_build_directory
from tests.support.gitutil import git
from tests.support.serve import ROOT

LOCKS = ("runtime", "build", "dev")


def entries(pyz: Path) -> dict[str, bytes]:
    """Everything in the file, by name."""
    with zipfile.ZipFile(pyz) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def distributions(pyz: Path) -> dict[str, str]:
    """Name and version of everything packed, from the metadata in the file."""
    headers = [
        HeaderParser().parsestr(content.decode())
        for name, content in entries(pyz).items()
        if name.endswith(".dist-info/METADATA")
    ]
    return {header["Name"]: header["Version"] for header in headers}


def normal(name: str) -> str:
    """A distribution's name as an index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(name: str) -> dict[str, str]:
    """Name and version of every line of a lock file."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9][a-z0-9.-]*)==([^ ;]+)", text, re.MULTILINE))


@pytest.mark.slow
def test_two_builds_of_one_commit_are_the_same_bytes(checkout: Path, tmp_path: Path) -> None:
    """In another directory, by a user with another umask in another time zone, without what git has kept there.

    And over half of a file: what is up to date is asked of the file itself.
    """
    other = tmp_path / "another" / "much-longer" / "path"
    git("clone", "--quiet", "--depth=1", checkout.as_uri(), str(other))
    lend_build_directory(other)
    once = (checkout / "dist" / "gitmirror.pyz").read_bytes()
    half = tmp_path / "again.pyz"
    half.write_bytes(once[: len(once) // 2])
    again = build_pyz(other, half, env={"TZ": "Asia/Tokyo"}, umask=0o077)
    assert again.read_bytes() == once
    assert git("-C", str(other), "status", "--porcelain") == ""


@pytest.mark.slow
def test_a_build_of_the_same_tree_is_not_repeated(checkout: Path, tmp_path: Path) -> None:
    """And one of a changed tree is, which then says that it is not quite its commit."""
    mine = tmp_path / "mine"
    git("clone", "--quiet", str(checkout), str(mine))
    lend_build_directory(mine)
    output = mine / "dist" / "gitmirror.pyz"
    output.parent.mkdir()
    shutil.copy(checkout / "dist" / "gitmirror.pyz", output)
    first = output.stat()
    assert build_pyz(mine).stat().st_mtime_ns == first.st_mtime_ns
    (mine / "appliance" / "added.txt").write_text("a new file, not committed\n")
    changed = entries(build_pyz(mine))
    head = git("-C", str(mine), "rev-parse", "HEAD")[:10]
    assert changed["site-packages/appliance/added.txt"] == b"a new file, not committed\n"
    assert changed["site-packages/appliance/COMMIT"].decode() == f"{head}-dirty\n"


def test_nothing_in_it_is_compiled(pyz: Path) -> None:
    """The same file runs on any processor and any version of Python."""
    compiled = (b"\x7fELF", b"MZ", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
    for name, content in entries(pyz).items():
        assert not name.endswith((".so", ".pyd", ".dylib", ".dll", ".pyc", ".exe")), name
        assert not content.startswith(compiled), name


def test_it_is_exactly_what_is_locked(pyz: Path) -> None:
    """The runtime's packages, gitmirror, and shiv for the code that unpacks."""
    packed = {normal(name): version for name, version in distributions(pyz).items()}
    assert packed == locked("runtime") | {"gitmirror": __version__, "shiv": locked("build")["shiv"]}


def test_every_file_of_the_package_is_in_it(pyz: Path) -> None:
    """Also those that are no Python: style sheets, shell scripts, units, the man page."""
    names = entries(pyz).keys()
    package = [path for path in (ROOT / "appliance").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    units = list((ROOT / "systemd").iterdir())
    assert package and units
    for path in package:
        assert f"site-packages/{path.relative_to(ROOT)}" in names
    for path in units:
        assert f"site-packages/appliance/units/{path.name}" in names
    assert "site-packages/appliance/man/gitmirror.1" in names


@pytest.mark.parametrize("name", LOCKS)
def test_lock_files_hold_everywhere(name: str) -> None:
    """A hash for every line and no word of where the files came from."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    logical = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    assert logical
    for line in logical:
        assert re.match(r"[a-z0-9.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line
    assert "://" not in text and "/root" not in text and "--index" not in text


def test_lock_files_agree() -> None:
    """What is tested is what is packed."""
    assert locked("runtime").items() <= locked("dev").items()
    assert locked("build").items() <= locked("dev").items()


def test_version(packed: Packed) -> None:
    """Version and commit, on one line."""
    done = packed.run("--version")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"gitmirror {re.escape(__version__)}( \([0-9a-f]{{10}}(-dirty)?\))?\n", done.stdout)


def test_version_imports_nothing_heavy(packed: Packed) -> None:
    """What is imported is what a start costs: nothing packed but two small files of ours."""
    assert packed.run("--version").returncode == 0  # unpacked, from here on
    imports = packed.run("--version", python=(sys.executable, "-X", "importtime")).stderr
    imported = {line.rpartition("|")[2].strip() for line in imports.splitlines() if "|" in line}
    assert {"_launcher", "appliance"} <= imported
    top_level = {name.partition(".")[0] for name in imported}
    assert not top_level & {"click", "git", "h11", "prometheus_client", "rich", "sqlite_utils", "textual"}
    assert not imported & {"asyncio", "logging", "sqlite3", "subprocess", "zipfile", "_bootstrap", "appliance.cli"}


def test_licenses_of_all_that_is_packed(packed: Packed) -> None:
    """One line each: name, version, licence."""
    done = packed.run("--licenses")
    assert done.returncode == 0, done.stderr
    rows = [re.split(r"  +", line) for line in done.stdout.splitlines()]
    assert {name: version for name, version, _ in rows} == distributions(packed.file)
    assert all(license and license != "unknown" for _, _, license in rows)
