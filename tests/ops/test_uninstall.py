"""Uninstalling below another root: what `install` wrote goes, and what agents recorded stays unless it is purged."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from appliance.cli.main import cli
from appliance.core.errors import GitmirrorError
from appliance.core.layout import Layout
from appliance.core.node.state_dir import open_stores
from appliance.core.ops import uninstall as core
from appliance.core.ops.install import InstallError, plan_install
from appliance.core.ops.uninstall import RemoveTree, plan_uninstall
from appliance.core.process.owner import claim


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system on which a file was installed and a repository registered."""
    root, program = tmp_path / "node", tmp_path / "gitmirror.pyz"
    program.write_bytes(b"#!/bin/sh\n")
    for step in plan_install(root, program).steps:
        step.apply()
    stores = open_stores(Layout(root / "var/lib/gitmirror"))
    with stores.database.writing() as connection:
        repo = {"name": "o/r", "url": "https://h/o/r", "source": "cli", "created_at": 0.0}
        connection.table("repos").insert(repo)
    stores.database.close()
    (root / "var/cache/gitmirror/gitmirror.pyz_x").mkdir(parents=True)
    return root


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def uninstall(root: Path, *words: str, answer: str | None = None) -> Any:
    return CliRunner().invoke(cli, ["uninstall", "--root", str(root), *words], input=answer)


def test_what_was_installed_goes_and_what_is_the_operators_stays(root: Path) -> None:
    """Twice: the second time there is nothing to do. What is left is named with the command that removes it."""
    edited = root / "etc/systemd/system/gitmirror-git.socket.d/override.conf"
    edited.parent.mkdir()
    edited.write_text("[Socket]\n")
    done = uninstall(root)
    assert done.exit_code == 0, done.output
    state, config = root / "var/lib/gitmirror", root / "etc/gitmirror"
    kept = {"etc/gitmirror/gitmirror.toml", "etc/systemd/system/gitmirror-git.socket.d/override.conf"}
    assert {name for name in files(root) if not name.startswith("var/lib/gitmirror/")} == kept
    assert (state / "gitmirror.db").exists()
    assert not (root / "var/cache/gitmirror").exists()
    held = "the mirrors of 1 repository, 0 sessions of agents, and the audit log"
    assert f"{state} ({held}): rm -r {state}" in done.stdout
    assert f"{config} (the configuration): rm -r {config}" in done.stdout
    again = uninstall(root)
    assert again.exit_code == 0 and again.stdout.startswith("gitmirror is not installed here\nleft, ")


def test_a_purge_names_what_it_deletes_and_asks(root: Path) -> None:
    """A no changes nothing; a yes, or --yes, leaves nothing behind."""
    before = files(root)
    done = uninstall(root, "--purge", answer="n\n")
    assert done.exit_code == 1 and "Nothing was changed" in done.stderr
    assert "the mirrors of 1 repository" in done.stderr and "(the configuration)" in done.stderr
    assert files(root) == before
    assert uninstall(root, "--purge", answer="y\n").exit_code == 0
    assert files(root) == set()
    assert not (root / "var/lib/gitmirror").exists() and not (root / "etc/gitmirror").exists()
    assert uninstall(root, "--purge").stdout == "gitmirror is not installed here\n"


def test_what_was_kept_is_there_for_the_next_install(root: Path, tmp_path: Path) -> None:
    """The same files as before, with the operator's configuration."""
    before = files(root)
    config = root / "etc/gitmirror/gitmirror.toml"
    config.write_text("[refresh]\ninterval = '5s'\n")
    assert uninstall(root).exit_code == 0
    for step in plan_install(root, tmp_path / "gitmirror.pyz").steps:
        step.apply()
    assert files(root) == before and "5s" in config.read_text()


def test_a_state_directory_in_use_is_not_deleted(root: Path) -> None:
    """It may be served by hand; the error names the process."""
    held = claim(Layout(root / "var/lib/gitmirror"), "serve")
    try:
        done = uninstall(root, "--purge", "--yes")
    finally:
        held.release()
    assert done.exit_code == 1 and f"serve, process {os.getpid()}, still uses" in done.stderr
    assert (root / "var/lib/gitmirror/gitmirror.db").exists()


def test_a_state_directory_on_another_disk(root: Path, tmp_path: Path) -> None:
    """A link is followed, and removed with what it leads to."""
    state = root / "var/lib/gitmirror"
    state.rename(tmp_path / "disk")
    state.symlink_to(tmp_path / "disk")
    RemoveTree("", state).apply()
    assert not state.is_symlink() and not (tmp_path / "disk").exists()


def test_the_addresses_that_install_wrote_go(root: Path, tmp_path: Path) -> None:
    """An operator's own drop-in beside them stays."""
    for step in plan_install(root, tmp_path / "gitmirror.pyz", listen=["10.0.0.1"]).steps:
        step.apply()
    own = root / "etc/systemd/system/gitmirror-git.socket.d/override.conf"
    own.write_text("[Socket]\n")
    assert "(changes of the unit)" in uninstall(root).stdout
    assert [path.name for path in root.glob("etc/systemd/system/*/*")] == [own.name]
    assert not (root / "etc/systemd/system/gitmirror-http.socket.d").exists()


def test_nothing_outside_of_an_image_is_removed(root: Path, tmp_path: Path) -> None:
    """A link in the image that leads out of it is the image's own; what it leads to here is this machine's."""
    state, outside = root / "var/lib/gitmirror", tmp_path / "disk"
    state.rename(outside)
    state.symlink_to(outside)
    assert uninstall(root, "--purge", "--yes").exit_code == 0
    assert not state.is_symlink() and (outside / "gitmirror.db").exists()
    units = tmp_path / "units"
    units.mkdir()
    (units / "gitmirror.service").touch()
    (root / "etc/systemd/system").rmdir()
    (root / "etc/systemd/system").symlink_to(units)
    done = uninstall(root)
    assert done.exit_code == 1 and f"leads to {units}, outside of {root}" in done.stderr
    assert (units / "gitmirror.service").exists()


def live(monkeypatch: pytest.MonkeyPatch, root: Path) -> Callable[..., core.Uninstallation]:
    """Plans for `root` as if it were this machine's own, which has systemd and the user."""
    monkeypatch.setattr(core, "REAL_ROOT", root)
    monkeypatch.setattr(core, "_below", lambda root, path: root / path.relative_to("/"))
    monkeypatch.setattr(core, "_user_exists", lambda: True)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    return lambda **more: plan_uninstall(root, **more)


def test_the_units_are_stopped_before_their_files_go(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in one command; systemd reads anew after; the user goes only with what it owns."""
    plan = live(monkeypatch, root)
    said = [step.text for step in plan().steps]
    assert said[0] == "stop and disable the sockets and the service"
    removed = next(number for number, text in enumerate(said) if text.endswith("gitmirror.service"))
    assert removed < said.index("let systemd forget the units")
    assert "remove the user gitmirror" not in said
    purged = [step.text for step in plan(purge=True).steps]
    assert purged.index("remove the user gitmirror") > purged.index(f"remove {root}/var/lib/gitmirror")


def test_this_machine_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is looked at."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(InstallError, match="needs root"):
        plan_uninstall(Path("/"))


def test_what_cannot_be_removed_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason; what was removed before stays removed, and the next run goes on."""
    subprocess.run(["mkdir", "-p", root / "usr/local/bin/gitmirror.pyz.d"], check=True)
    program = root / "usr/local/bin/gitmirror.pyz"
    program.unlink()
    program.mkdir()
    with pytest.raises(GitmirrorError, match=f"cannot remove {program}"):
        for step in plan_uninstall(root).steps:
            step.apply()
    program.rmdir()
    assert uninstall(root).exit_code == 0
