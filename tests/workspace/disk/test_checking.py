"""A wrong byte in a drive is found, and no later lease gets that drive."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from appliance.core.process.checked_file import NotRight
from appliance.core.workspace.disk.checking import DiskCheck, verify_generation
from tests.support.gitutil import git
from tests.workspace.disk.disk_lab import DiskLab, check, fast_import


def flip(path: Path, at: int) -> None:
    """Change one byte of a file below the file system's times."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        [byte] = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def built(lab: DiskLab) -> Path:
    """Build two images, and return their generation."""
    fast_import(lab.bare, [{b"a": (b"100644", b"x" * 9000)}])
    lab.build()
    fast_import(lab.bare, [{b"b": (b"100644", b"y" * 9000)}])
    lab.build()
    return lab.newest


def test_drives_as_written_are_right(lab: DiskLab) -> None:
    """Also with a byte of a build that was cut short behind the end."""
    generation = built(lab)
    with (generation / "data").open("ab") as data:
        data.write(b"unfinished")
    verify_generation(generation)


@pytest.mark.parametrize("at", [10, 4096, 9000, -4096])
def test_a_wrong_byte_of_the_data_drive_is_found(lab: DiskLab, at: int) -> None:
    """Wherever it is."""
    data = built(lab) / "data"
    flip(data, at % data.stat().st_size)
    with pytest.raises(NotRight, match="data drive"):
        verify_generation(lab.newest)


@pytest.mark.parametrize("at", [0, 1030, 5000])
def test_a_wrong_byte_of_a_tree_drive_is_found(lab: DiskLab, at: int) -> None:
    """It is named."""
    built(lab)
    image = lab.place.images()[0]
    flip(lab.place.tree(image), at)
    with pytest.raises(NotRight, match=image.name):
        verify_generation(lab.newest)


def test_a_short_data_drive_and_a_broken_catalogue_are_found(lab: DiskLab) -> None:
    """Each for itself."""
    generation = built(lab)
    copy = shutil.copytree(generation, lab.directory / str(int(generation.name) + 1))
    with (copy / "data").open("r+b") as data:
        data.truncate(8192)
    with pytest.raises(NotRight, match="shorter"):
        verify_generation(copy)
    (generation / "catalogue.db").write_bytes(b"y" * 4096)
    with pytest.raises(NotRight, match="catalogue"):
        verify_generation(generation)


def test_a_catalogue_that_is_being_written_is_no_damage(lab: DiskLab) -> None:
    """Neither is one whose last transaction a kill cut short: the next build puts it in order."""
    generation = built(lab)
    copy = shutil.copytree(generation, lab.directory / "2")
    connection = sqlite3.connect(generation / "catalogue.db", isolation_level=None)
    connection.execute("PRAGMA cache_spill = ON")
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("BEGIN EXCLUSIVE")
    connection.execute("CREATE TABLE more AS SELECT * FROM contents")
    for name in ("catalogue.db", "catalogue.db-journal"):
        shutil.copy(generation / name, copy / name)
    verify_generation(copy)
    connection.execute("ROLLBACK")
    connection.close()
    verify_generation(generation)


@pytest.mark.parametrize("column", ["start", "size"])
def test_a_catalogue_without_sense_is_damage(lab: DiskLab, column: str) -> None:
    """One bit may turn a number into nothing, or make it negative."""
    generation = built(lab)
    with sqlite3.connect(generation / "catalogue.db") as connection:
        connection.execute(f"UPDATE segments SET {column} = {column} - 10000000")
    connection.close()
    with pytest.raises(NotRight, match="no sense"):
        verify_generation(generation)


def test_no_later_image_is_built_beside_a_wrong_byte(lab: DiskLab, tmp_path: Path) -> None:
    """What was there at the start is due at once, and a generation that is right again only hours later."""
    told: list[str] = []
    place = tmp_path / "all" / "acme" / "widgets"
    place.parent.mkdir(parents=True)
    lab.directory = place
    generation = built(lab)
    checks = DiskCheck(tmp_path / "all", told.append)

    async def twice() -> list[bool]:
        return [await checks.check_next(1e9), await checks.check_next(1e9)]

    assert asyncio.run(twice()) == [True, False]
    assert told == []
    flip(generation / "data", 5000)
    checks = DiskCheck(tmp_path / "all", told.append)
    assert asyncio.run(twice()) == [True, False]
    assert (told, checks.damaged) == (["acme/widgets"], 1)
    image = lab.build(commit=git("rev-parse", "main~1", cwd=lab.bare))
    assert image.generation > int(generation.name)
    check(lab, image, tmp_path / "out")
