"""A `.gitmodules` with as much as possible in it costs its own repository little, and others nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.core.access.catalog import Catalog
from appliance.core.git.gitmodules import MOST_BYTES
from appliance.core.workspace import submodules
from appliance.core.workspace.submodules import MOST_LOOKS, MOST_MISSING, Lack, MissingSubmodule, Submodule, resolve
from tests.git.lab import Lab
from tests.workspace.submodule_lab import SubmoduleLab, section

GONE = "1" * 40
STALL = 1.5
"""Seconds for which the event loop may stand still; comparing each entry with all others took twenty."""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[SubmoduleLab]:
    base = Lab(tmp_path / "state")
    yield SubmoduleLab(base, tmp_path / "mirrors")
    base.close()


def short(name: str, url: str) -> str:
    return f'[submodule "{name}"]path={name}\nurl={url}\n'


def resolved(lab: SubmoduleLab, name: str, commit: str) -> tuple[float, tuple[list[Submodule], list[MissingSubmodule]]]:
    """What is found, and the most of the processor's time that the event loop was busy at once, in seconds."""

    async def watched() -> tuple[float, tuple[list[Submodule], list[MissingSubmodule]]]:
        catalog, longest = Catalog(lab.repos.values()), 0.0

        async def watch() -> None:
            nonlocal longest
            while True:
                began = time.thread_time()
                await asyncio.sleep(0.01)
                longest = max(longest, time.thread_time() - began)

        watching = asyncio.create_task(watch())
        found = await resolve(
            lab.repos[name], commit, find=catalog.by_url, mirror_of=lab.mirror, may_read=lambda _: True
        )
        await asyncio.sleep(0.02)
        watching.cancel()
        return longest, found

    return lab.lab.run(watched())


def test_thousands_of_entries_do_not_hold_up_the_event_loop(lab: SubmoduleLab) -> None:
    lab.create("acme/app")
    names = [f"{number:x}" for number in range(7500)]
    text = "".join(short(name, "a:b") for name in names)
    assert len(text) < MOST_BYTES
    longest, (found, missing) = resolved(lab, "acme/app", lab.commit("acme/app", text, dict.fromkeys(names, GONE)))
    assert not found
    assert len(missing) == MOST_MISSING
    assert longest < STALL


def test_commits_that_a_mirror_lacks_are_looked_for_so_many_times(
    lab: SubmoduleLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.create("acme/app"), lab.create("acme/lib")
    lab.commit("acme/lib")
    monkeypatch.setattr(submodules, "MOST_LOOKS", 20)
    names = [f"m{number:02}" for number in range(30)]
    text = "".join(section(name, name, "../lib") for name in names)
    _, (found, missing) = resolved(lab, "acme/app", lab.commit("acme/app", text, dict.fromkeys(names, GONE)))
    assert not found
    assert [each.reason for each in missing] == [Lack.NO_COMMIT] * 20 + [Lack.TOO_MANY] * 10
    assert MOST_LOOKS > submodules.MOST_SUBMODULES


def test_directories_that_no_command_line_can_name_are_refused(lab: SubmoduleLab) -> None:
    lab.create("acme/app"), lab.create("acme/lib")
    lib = lab.commit("acme/lib")
    text = "".join(section(f"n{number}", f"{number:03}/" + "d/" * 480 + "x", "../lib") for number in range(150))
    assert len(text) < MOST_BYTES
    _, (found, missing) = resolved(lab, "acme/app", lab.commit("acme/app", text, {"x": lib}))
    assert not found
    assert [each.reason for each in missing] == [Lack.HOSTILE]
