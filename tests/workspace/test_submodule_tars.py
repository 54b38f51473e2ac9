"""A workspace with submodules is what a person's clone of the same upstream is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.core.git.mirror import Mirror
from appliance.core.workspace.history import History
from appliance.core.workspace.shape import Shape
from appliance.core.workspace.snapshot_build import build_snapshot
from appliance.core.workspace.snapshot_modules import WantedModules
from appliance.core.workspace.snapshot_place import Snapshot, SnapshotPlace
from appliance.core.workspace.submodules import Submodule
from tests.git.lab import Lab
from tests.support.gitutil import clean_env, git, run_process
from tests.workspace.lab import tree_of
from tests.workspace.submodule_lab import SubmoduleLab, section


class Tars:
    """Builds tars with submodules of `acme/app` and unpacks them. The mirrors are the upstreams."""

    def __init__(self, lab: SubmoduleLab, base: Path, history: History) -> None:
        self.lab, self.base, self.history = lab, base, history
        self.place = SnapshotPlace(base / "snapshots", "main", Shape(history, modules=()))
        self.env = clean_env(base, GIT_ALLOW_PROTOCOL="file", GIT_CONFIG_COUNT="1")
        self.env |= {"GIT_CONFIG_KEY_0": "protocol.file.allow", "GIT_CONFIG_VALUE_0": "always"}

    def create(self, *names: str) -> None:
        for name in names:
            self.lab.create(name, str(self.lab.mirror(name).path))

    def build(self, name: str = "acme/app") -> Snapshot:
        bare = self.lab.mirror(name).path
        tip = git("rev-parse", "refs/heads/main", cwd=bare)
        found, missing = self.lab.resolve(name, tip)

        async def history(module: Submodule, directory: Path) -> History:
            return self.history

        wanted = WantedModules(found, self.lab.mirror, history, [each.path for each in missing])
        runner = self.lab.lab.git
        work = build_snapshot(self.place, Mirror(bare, runner), runner, self.lab.repos[name].url, tip, wanted)
        snapshot = self.lab.lab.run(work)
        self.place.remove_others(snapshot)
        return snapshot

    def unpack(self, to: Path, tar: str = "tar") -> Path:
        [archive] = self.place.directory.glob("*.tar")
        to.mkdir()
        done = run_process([*tar.split(), "-xf", str(archive), "-C", str(to)])
        assert done.returncode == 0, done.stderr
        return to

    def clone(self, to: Path, name: str = "acme/app") -> Path:
        git("clone", "-q", "--no-local", self.lab.repos[name].url, str(to), cwd=self.base, env=self.env)
        git("submodule", "--quiet", "update", "--init", "--recursive", cwd=to, env=self.env)
        return to

    def git(self, *words: str, cwd: Path, **more: str) -> str:
        return git(*words, cwd=cwd, env=self.env | more)


@pytest.fixture(params=[History.FULL, History.TIP, History.TREES])
def tars(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tars]:
    base = Lab(tmp_path / "state")
    yield Tars(SubmoduleLab(base, tmp_path / "mirrors"), tmp_path, request.param)
    base.close()


def three_levels(tars: Tars) -> None:
    """`acme/app` with three levels: relative, absolute, and one in a directory, at a tip that is not the branch's."""
    tars.create("acme/app", "acme/lib", "other/leaf", "acme/tools")
    lab = tars.lab
    leaf = lab.commit("other/leaf", leaf="leaf\n")
    lab.commit("other/leaf", leaf="later\n")
    lib = lab.commit("acme/lib", section("leaf", "deep/leaf", "../../other/leaf.git"), {"deep/leaf": leaf}, lib="1\n")
    tools = lab.commit("acme/tools", None, None, x="x\n")
    git("tag", "-a", "-m", "one", "v1", tools, cwd=lab.mirror("acme/tools").path)
    text = section("libs/x", "libs/x", "../lib.git") + section("a \\\\ b", "tools", str(lab.mirror("acme/tools").path))
    lab.commit("acme/app", text, {"libs/x": lib, "tools": tools}, app="app\n")


def module_settings(tars: Tars, top: Path, inside: str) -> list[str]:
    """The config of a submodule that git itself writes, or that follows from it."""
    listed = tars.git("config", "--local", "--list", cwd=top / inside).splitlines()
    ours = ("core.checkstat=", "core.trustctime=", "gc.", "maintenance.", "extensions.", "core.repositoryformat")
    return sorted(
        line for line in listed if not line.startswith(ours) and ".promisor" not in line and "clonefilter" not in line
    )


@pytest.mark.slow
def test_a_workspace_is_what_a_clone_is(tars: Tars, tmp_path: Path) -> None:
    three_levels(tars)
    tars.build()
    ours, theirs = tars.unpack(tmp_path / "ours"), tars.clone(tmp_path / "theirs")
    files = {path: kind for path, kind in tree_of(theirs).items()}
    assert {path: kind for path, kind in tree_of(ours).items()} == files and "libs/x/deep/leaf/leaf" in files
    tars.lab.directory.rename(tmp_path / "gone")
    for inside in ("", "libs/x", "libs/x/deep/leaf", "tools"):
        assert tars.git("ls-files", "-s", cwd=ours / inside) == tars.git("ls-files", "-s", cwd=theirs / inside)
        assert tars.git("rev-parse", "HEAD", cwd=ours / inside) == tars.git("rev-parse", "HEAD", cwd=theirs / inside)
        assert tars.git("status", "--porcelain=v2", "--ignore-submodules=none", cwd=ours / inside) == ""
        if inside:
            assert module_settings(tars, ours, inside) == [
                line for line in module_settings(tars, theirs, inside)
                if not line.startswith("branch.") or "branch.main.remote=origin" in module_settings(tars, ours, inside)
            ]  # fmt: skip
            assert (ours / inside / ".git").read_text() == (theirs / inside / ".git").read_text()
            assert tars.git("fsck", "--connectivity-only", cwd=ours / inside) == ""
    assert tars.git("diff", cwd=ours) == ""
    status = [line.split(" (")[0] for line in tars.git("submodule", "status", "--recursive", cwd=theirs).splitlines()]
    mine = tars.git("submodule", "status", "--recursive", cwd=ours)
    assert [line.split(" (")[0] for line in mine.splitlines()] == status
    assert tars.git("config", "--get-regexp", "^submodule", cwd=ours) == tars.git(
        "config", "--get-regexp", "^submodule", cwd=theirs
    )
    # With its upstreams gone, this does nothing, or fails.
    assert tars.git("submodule", "update", "--init", "--recursive", cwd=ours, GIT_ALLOW_PROTOCOL="none") == ""
    tars.git("submodule", "sync", "--recursive", cwd=ours)
    assert tars.git("submodule", "foreach", "--quiet", "--recursive", "echo $sm_path", cwd=ours).splitlines() == [
        "libs/x",
        "deep/leaf",
        "tools",
    ]
    assert tars.git("status", "--porcelain", cwd=ours) == ""


@pytest.mark.slow
def test_git_reads_no_file_again_and_sees_every_edit(tars: Tars, tmp_path: Path) -> None:
    three_levels(tars)
    tars.build()
    for tar in ("tar", "busybox tar"):
        ours = tars.unpack(tmp_path / tar.replace(" ", "-"), tar)
        # An index entry that is not up to date would be refreshed, and its content read.
        for inside in ("", "libs/x", "libs/x/deep/leaf", "tools"):
            index = tars.git("rev-parse", "--path-format=absolute", "--git-path", "index", cwd=ours / inside)
            before = Path(index).stat().st_mtime
            tars.git("status", cwd=ours / inside)
            assert Path(index).stat().st_mtime == before
        edited = ours / "libs/x/deep/leaf/leaf"
        edited.write_text("LEAF\n")
        assert tars.git("status", "--porcelain", cwd=ours) == "M libs/x"
        assert tars.git("status", "--porcelain", cwd=ours / "libs/x/deep/leaf") == "M leaf"
        objects = list((ours / ".git/modules").rglob("*.pack"))
        assert objects and all(path.stat().st_mode & 0o777 == 0o444 for path in objects)


@pytest.mark.slow
def test_a_submodule_moves_is_replaced_and_goes(tars: Tars, tmp_path: Path) -> None:
    three_levels(tars)
    tars.build()
    lab = tars.lab
    lib = lab.commit("acme/lib", None, None, lib="2\n")
    # It has moved, its place has files, and `tools` is now another repository.
    leaf = git("rev-parse", "refs/heads/main", cwd=lab.mirror("other/leaf").path)
    text = section("libs/x", "moved", "../lib.git") + section("a \\\\ b", "tools", "../../other/leaf.git")
    lab.commit("acme/app", text, {"moved": lib, "tools": leaf}, **{"libs/x/file": "a file\n"})
    tars.build()
    ours, theirs = tars.unpack(tmp_path / "ours"), tars.clone(tmp_path / "theirs")
    assert tree_of(ours) == tree_of(theirs)
    assert tars.git("status", "--porcelain", "--ignore-submodules=none", cwd=ours) == ""
    assert sorted(os.listdir(ours / ".git/modules")) == sorted(os.listdir(theirs / ".git/modules"))
    lab.commit("acme/app", None, None, app="alone\n")
    assert not tars.build().modules
    assert tree_of(tars.unpack(tmp_path / "alone")) == tree_of(tars.clone(tmp_path / "clone"))
    assert not list(tars.place.module_packs.iterdir()) and not list((tars.place.work / "modules").iterdir())


@pytest.mark.slow
def test_a_submodule_whose_mirror_is_broken_stays_empty(tars: Tars, tmp_path: Path) -> None:
    three_levels(tars)
    broken = tars.lab.mirror("acme/lib").path
    blob = git("rev-parse", "refs/heads/main:lib", cwd=broken)
    (broken / "objects" / blob[:2] / blob[2:]).unlink()
    snapshot = tars.build()
    assert [each[0] for each in snapshot.modules] == ["tools"]
    ours = tars.unpack(tmp_path / "ours")
    assert tars.git("submodule", "status", cwd=ours).startswith("-") and not list((ours / "libs/x").iterdir())
    assert (ours / "tools/x").read_text() == "x\n"
