"""What a branch lacks is looked for elsewhere: once for each tip."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.core.access.catalog import Catalog
from appliance.core.config.settings import WorkspaceConfig
from appliance.core.git.mirror import Mirror
from appliance.core.models import ALLOWED, Repo
from appliance.core.workspace import module_finder
from appliance.core.workspace.module_finder import ModuleFinder, Tip
from appliance.core.workspace.submodules import resolve
from tests.git.lab import Lab
from tests.workspace.submodule_lab import HOST, SubmoduleLab, section


def at(commit: str) -> Tip:
    """A branch at this commit."""

    async def tip() -> str | None:
        return commit

    return tip


def test_a_missing_commit_is_refreshed_for_and_a_missing_mirror_brought(tmp_path: Path) -> None:
    base = Lab(tmp_path / "state")
    lab = SubmoduleLab(base, tmp_path / "mirrors")
    app, lib = lab.create("acme/app"), lab.create("acme/lib")
    lab.commit("acme/lib")
    text = section("lib", "lib", "../lib") + section("late", "late", "../late") + section("bad", "bad", "ext::sh")
    tip = lab.commit("acme/app", text, dict.fromkeys(("lib", "late", "bad"), "1" * 40))
    catalog, nudged, brought = Catalog(lab.repos.values()), list[Repo](), list[str]()

    async def bring(url: str) -> Repo | None:
        brought.append(url)
        return None

    finder = ModuleFinder(lambda: catalog, lab.mirror, WorkspaceConfig, nudged.append, bring)

    async def follow() -> None:
        for _ in range(2):
            await finder.follow(app, "main", at(tip), is_asked=False)
        await finder.wait()

    base.run(follow())
    assert nudged == [lib] and brought == [f"{HOST}/acme/late"]
    assert [lack["reason"] for lack in finder.lacks(app, "main")] == [
        "refused: its URL has a scheme that is not allowed",
        "not mirrored here",
        "its mirror does not have the commit",
    ]
    assert finder.depends_on(lib) == [app] and finder.depends_on(app) == []
    base.close()


def test_each_tip_may_name_others_but_not_all_of_them_are_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one repository waits for is bounded, however often it is pushed to, and others have their own bound."""
    monkeypatch.setattr(module_finder, "MOST_BROUGHT", 4)
    base = Lab(tmp_path / "state")
    lab = SubmoduleLab(base, tmp_path / "mirrors")
    app, good = lab.create("acme/app"), lab.create("acme/good")
    catalog, brought, gone = Catalog(lab.repos.values()), list[str](), "1" * 40
    tips = [
        lab.commit("acme/app", "".join(section(name, name, f"../{name}") for name in names), dict.fromkeys(names, gone))
        for names in (("a0", "a1", "a2"), ("b0", "b1", "b2"), ("c0", "c1", "c2"))
    ]
    other = lab.commit("acme/good", section("lib", "lib", "../lib"), {"lib": gone})

    async def bring(url: str) -> Repo | None:
        brought.append(url.rpartition("/")[2])
        await asyncio.Event().wait()
        return None

    finder = ModuleFinder(lambda: catalog, lab.mirror, WorkspaceConfig, lambda _: None, bring)

    async def follow() -> None:
        for tip in tips:
            await finder.follow(app, "main", at(tip), is_asked=False)
        await finder.follow(good, "main", at(other), is_asked=False)
        await asyncio.sleep(0)
        await finder.stop()

    base.run(follow())
    assert brought == ["a0", "a1", "a2", "b0", "lib"]
    base.close()


def test_guests_that_ask_at_once_cause_one_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each registration makes what is known outdated, and a search may cost a thousand git processes."""
    searches = 0

    async def counted(*args: Any, **named: Any) -> Any:
        nonlocal searches
        searches += 1
        return await resolve(*args, **named)

    monkeypatch.setattr(module_finder, "resolve", counted)
    base = Lab(tmp_path / "state")
    lab = SubmoduleLab(base, tmp_path / "mirrors")
    app = lab.create("acme/app")
    tip = lab.commit("acme/app", section("lib", "lib", "../lib"), {"lib": "1" * 40})
    catalog = Catalog(lab.repos.values())
    finder = ModuleFinder(lambda: catalog, lab.mirror, WorkspaceConfig, lambda _: None)

    async def ask() -> None:
        leaving, *staying = (asyncio.create_task(finder.learn(app, "main", tip)) for _ in range(20))
        await asyncio.sleep(0)
        leaving.cancel()
        assert all(known.missing for known in await asyncio.gather(*staying))
        assert searches == 1
        await finder.learn(app, "main", tip)
        assert searches == 2

    base.run(ask())
    base.close()


def test_nothing_is_read_of_a_tip_while_nothing_can_be_brought(tmp_path: Path) -> None:
    base = Lab(tmp_path / "state")
    lab = SubmoduleLab(base, tmp_path / "mirrors")
    app = lab.create("acme/app")
    catalog, allows, asked = Catalog(lab.repos.values()), False, list[str]()

    def mirror_of(name: str) -> Mirror:
        asked.append(name)
        return lab.mirror(name)

    async def bring(url: str) -> Repo | None:
        return None

    finder = ModuleFinder(lambda: catalog, mirror_of, WorkspaceConfig, lambda _: None, bring, lambda: allows)

    async def unasked() -> str | None:
        raise AssertionError("the branch was looked up")

    tip = lab.commit("acme/app")
    base.run(finder.follow(app, "main", unasked, is_asked=False))
    assert asked == []
    allows = True
    base.run(finder.follow(app, "main", at(tip), is_asked=False))
    assert asked
    base.close()


def test_a_submodule_of_a_registered_repository_is_needed(tmp_path: Path) -> None:
    """Those of a repository that guests brought are not, or two could keep each other for ever."""
    base = Lab(tmp_path / "state")
    lab = SubmoduleLab(base, tmp_path / "mirrors")
    app, lib = lab.create("acme/app"), lab.create("acme/lib")
    there = lab.commit("acme/lib")
    tip = lab.commit("acme/app", section("lib", "lib", "../lib"), {"lib": there})
    catalog = Catalog(lab.repos.values())
    finder = ModuleFinder(lambda: catalog, lab.mirror, WorkspaceConfig, lambda _: None)
    assert not finder.needs(lib)
    base.run(finder.learn(app, "main", tip))
    assert finder.needs(lib) and not finder.needs(app)
    catalog = Catalog([replace(app, source=ALLOWED), lib])
    assert not finder.needs(lib)
    base.close()
