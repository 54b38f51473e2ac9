"""Installing below another root: what is written, what is kept, and that no reader sees half a file."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import tomllib
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

from appliance.cli.main import cli
from appliance.core.config.credentials import CredentialConfig
from appliance.core.config.repositories import AllowConfig
from appliance.core.config.settings import SECTIONS, Config, parse_config
from appliance.core.errors import GitmirrorError, UsageError
from appliance.core.ops import install as core
from appliance.core.ops.default_config import default_config
from appliance.core.ops.install import Installation, InstallError, WriteFile, plan_install
from appliance.core.ops.shell_files import SHELL_FILES
from tests.support.serve import ROOT


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A zipapp that stands for the packed file."""
    path = tmp_path / "downloads" / "gitmirror.pyz"
    path.parent.mkdir()
    path.write_bytes(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__main__.py", "print('first')\n")
    return path


def carry_out(plan: Installation) -> list[str]:
    """Applies every step; returns what each said."""
    for step in plan.steps:
        step.apply()
    return [step.text for step in plan.steps]


def snapshot(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, inode and content of every file below `root`."""
    return {
        str(path.relative_to(root)): (path.stat().st_mode & 0o7777, path.stat().st_ino, path.read_bytes())
        for path in root.rglob("*")
        if path.is_file()
    }


def test_everything_lands_in_its_place(program: Path, tmp_path: Path) -> None:
    """The file itself, the units as in the repository, the configuration, the user, the state."""
    root = tmp_path / "node"
    said = carry_out(plan_install(root, program))
    written = snapshot(root)
    assert {name: mode for name, (mode, _, _) in written.items()} == {
        "usr/local/bin/gitmirror.pyz": 0o755,
        "etc/systemd/system/gitmirror.service": 0o644,
        "etc/systemd/system/gitmirror-git.socket": 0o644,
        "etc/systemd/system/gitmirror-http.socket": 0o644,
        "etc/systemd/system/gitmirror-admin.socket": 0o644,
        "etc/sysusers.d/gitmirror.conf": 0o644,
        "etc/gitmirror/gitmirror.toml": 0o644,
        **{str(path.relative_to("/")): 0o644 for path in SHELL_FILES},
    }
    assert written["usr/local/bin/gitmirror.pyz"][2] == program.read_bytes()
    for unit in core.UNITS:
        assert written[f"etc/systemd/system/{unit}"][2] == (ROOT / "systemd" / unit).read_bytes()
    assert (root / "var/lib/gitmirror").stat().st_mode & 0o7777 == 0o750
    assert (root / "etc/gitmirror").stat().st_mode & 0o7777 == 0o755
    assert any(line.startswith("left to the node: the user gitmirror") for line in said)
    assert any(line.startswith("left to the node: systemctl daemon-reload") for line in said)


def test_it_is_written_whatever_the_umask(program: Path, tmp_path: Path) -> None:
    """The service's user must be able to read its configuration and to run the file."""
    before = os.umask(0o077)
    try:
        carry_out(plan_install(tmp_path / "node", program))
    finally:
        os.umask(before)
    assert (tmp_path / "node/etc/gitmirror").stat().st_mode & 0o7777 == 0o755
    assert snapshot(tmp_path / "node")["etc/gitmirror/gitmirror.toml"][0] == 0o644


def test_a_second_install_changes_nothing(program: Path, tmp_path: Path) -> None:
    """Not one file is written again."""
    root = tmp_path / "node"
    carry_out(plan_install(root, program))
    before = snapshot(root)
    plan = plan_install(root, program)
    assert not [step.text for step in plan.steps if isinstance(step, WriteFile)]
    carry_out(plan)
    assert snapshot(root) == before


def test_an_upgrade_keeps_the_configuration(program: Path, tmp_path: Path) -> None:
    """A newer file and the shipped units replace what is there; what the operator wrote stays."""
    root = tmp_path / "node"
    carry_out(plan_install(root, program))
    config, unit = root / "etc/gitmirror/gitmirror.toml", root / "etc/systemd/system/gitmirror.service"
    config.write_text("[refresh]\ninterval = '5s'\n")
    unit.write_text("[Unit]\n")
    with zipfile.ZipFile(program, "a") as archive:
        archive.writestr("newer.py", "")
    said = carry_out(plan_install(root, program))
    assert config.read_text() == "[refresh]\ninterval = '5s'\n"
    assert f"keep {config} (yours)" in said
    assert unit.read_bytes() == (ROOT / "systemd/gitmirror.service").read_bytes()
    assert (root / "usr/local/bin/gitmirror.pyz").read_bytes() == program.read_bytes()


def test_the_installed_file_can_install_itself(program: Path, tmp_path: Path) -> None:
    """Running the copy in place, as after restoring a deleted unit, leaves the copy alone."""
    root = tmp_path / "node"
    carry_out(plan_install(root, program))
    installed = root / "usr/local/bin/gitmirror.pyz"
    (root / "etc/systemd/system/gitmirror-git.socket").unlink()
    before = installed.stat().st_ino
    said = carry_out(plan_install(root, installed))
    assert f"keep {installed} (it is the file being run)" in said
    assert installed.stat().st_ino == before
    assert (root / "etc/systemd/system/gitmirror-git.socket").exists()


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """While a file is replaced again and again, whoever opens it reads one whole version."""
    target = tmp_path / "gitmirror.pyz"
    versions = [letter * 3_000_000 for letter in (b"a", b"b")]
    WriteFile("", path=target, mode=0o755, content=versions[0]).apply()
    done = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(target.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(20):
            WriteFile("", path=target, mode=0o755, content=versions[number % 2]).apply()
    finally:
        done.set()
        reader.join()
    assert seen
    assert seen <= set(versions)
    assert [path.name for path in tmp_path.iterdir()] == ["gitmirror.pyz"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    """What cannot be copied to the end is removed, and the error names the target."""
    target = tmp_path / "gitmirror.pyz"
    target.write_bytes(b"old")
    with pytest.raises(InstallError, match=str(target)):
        WriteFile("", path=target, mode=0o755, source=tmp_path / "missing").apply()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"gitmirror.pyz": b"old"}


def test_the_default_configuration_is_the_default() -> None:
    """As written it sets nothing; with every # taken away it sets every key to its default."""
    text = default_config().decode()
    as_written = parse_config(text, Path("gitmirror.toml"))
    assert dataclasses.replace(as_written, path=None) == Config()
    lines = text.splitlines()
    uncommented = "\n".join(
        line.removeprefix("# ") for line in lines if " = " in line or line.startswith(("[", "# [["))
    )
    document = tomllib.loads(uncommented)
    [repo] = document.pop("repos")
    assert set(repo) == {"url", "name", "branch", "interval"}
    [allow] = document.pop("allow")
    assert set(allow) == {item.name for item in dataclasses.fields(AllowConfig)}
    [credential] = document.pop("credentials")
    assert set(credential) == {item.name for item in dataclasses.fields(CredentialConfig)}
    assert {name: set(keys) for name, keys in document.items()} == {
        name: {item.name for item in dataclasses.fields(section)} for name, section in SECTIONS.items()
    }
    parsed = parse_config(uncommented, Path("gitmirror.toml"))
    assert dataclasses.replace(parsed, path=None, repos=(), credentials=(), allow=()) == Config()


def test_every_setting_has_a_line_of_help() -> None:
    """Above each commented key stands a comment that is not a key."""
    lines = default_config().decode().splitlines()
    for above, line in pairwise(lines):
        if line.startswith("# ") and " = " in line:
            assert above.startswith("#"), line
            assert " = " not in above, line


def test_the_real_root_needs_root(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else may install on the machine; the message says how to look at least."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(InstallError, match="needs root") as caught:
        plan_install(Path("/"), program)
    assert "--root" in caught.value.hint


def test_a_machine_without_systemd_is_refused(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InstallError, match="systemctl"):
        plan_install(Path("/tmp/.."), program)


def test_nothing_can_be_started_below_another_root(program: Path, tmp_path: Path) -> None:
    """--now and --root contradict each other."""
    with pytest.raises(UsageError):
        plan_install(tmp_path / "node", program, start=True)


def test_only_the_packed_file_installs(tmp_path: Path) -> None:
    """From a checkout there is no file to copy; the error says how to get one."""
    script = tmp_path / "gitmirror"
    script.write_text("#!/bin/sh\n")
    for argv0 in (str(script), str(tmp_path / "none"), ""):
        with pytest.raises(GitmirrorError, match=r"not a packed gitmirror\.pyz") as caught:
            core.running_program(argv0)
        assert "build_pyz.sh" in caught.value.hint


def test_the_command_says_what_it_did(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line for each step, then the commands that come next."""
    monkeypatch.setattr(sys, "argv", [str(program), "install"])
    # By way of the group: click remembers the help options of the first call, and the group has -h.
    result = CliRunner().invoke(cli, ["install", "--root", str(tmp_path / "node")])
    assert result.exit_code == 0, result.output
    written, _, following = result.output.partition("next:\n")
    assert f"write {tmp_path}/node/usr/local/bin/gitmirror.pyz (a copy of {program})" in written
    sockets = "gitmirror-git.socket gitmirror-http.socket gitmirror-admin.socket"
    assert [line.strip() for line in following.splitlines()] == [
        f"systemctl enable {sockets} gitmirror.service",
        f"systemctl start {sockets}",
        "systemctl restart gitmirror.service",
    ]


def test_the_installed_file_runs(program: Path, tmp_path: Path) -> None:
    """It is executable as it lies there."""
    carry_out(plan_install(tmp_path / "node", program))
    done = subprocess.run([tmp_path / "node/usr/local/bin/gitmirror.pyz"], capture_output=True, check=True)
    assert done.stdout == b"first\n"


def test_a_command_that_fails_says_why() -> None:
    """What useradd or systemctl complained about reaches the operator."""
    with pytest.raises(InstallError, match=r"failed with 3: no good"):
        core.RunCommand("", argv=("sh", "-c", "echo no good >&2; exit 3")).apply()
    with pytest.raises(InstallError, match="cannot run"):
        core.RunCommand("", argv=("/nonexistent/command",)).apply()


def streams(root: Path, listener: str) -> list[str]:
    """What the drop-in makes a socket listen on; none without one."""
    path = root / f"etc/systemd/system/gitmirror-{listener}.socket.d/listen.conf"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.removeprefix("ListenStream=") for line in lines if line.startswith("ListenStream=")]


def test_addresses_for_guests_go_to_both_sockets_and_stay(program: Path, tmp_path: Path) -> None:
    """The default goes first, loopback stays, an upgrade keeps them, another choice replaces them; admin is alone."""
    root = tmp_path / "node"
    plan = plan_install(root, program, listen=["10.0.0.1", "fd00::1", "unix:/run/100%/"])
    carry_out(plan)
    assert streams(root, "git") == [
        "", "10.0.0.1:9418", "[fd00::1]:9418", "/run/100%%/git.sock", "127.0.0.1:9418",
    ]  # fmt: skip
    assert streams(root, "http")[-2:] == ["/run/100%%/http.sock", "127.0.0.1:9419"]
    assert streams(root, "admin") == []
    assert "systemctl stop" in plan.next_commands[0], "systemd opens no socket anew while its service runs"
    before = snapshot(root)
    for listen in ([], ["10.0.0.1", "fd00::1", "unix:/run/100%/"]):
        plan = plan_install(root, program, listen=listen)
        carry_out(plan)
        assert snapshot(root) == before and not any("stop" in command for command in plan.next_commands)
    carry_out(plan_install(root, program, listen=["0.0.0.0", "vsock"]))
    assert streams(root, "git") == ["", "0.0.0.0:9418", "vsock::9418"]
    carry_out(plan_install(root, program, listen=["127.0.0.1"]))
    assert streams(root, "git") == streams(root, "http") == []


def test_each_address_is_opened_once_and_stands_on_a_line_of_its_own(program: Path, tmp_path: Path) -> None:
    """However it is written: systemd opens no socket of a unit if one of them is in use."""
    root = tmp_path / "node"
    carry_out(plan_install(root, program, listen=["[::]", "::0"]))
    assert streams(root, "git") == ["", "[::]:9418"]
    carry_out(plan_install(root, program, listen=["fe80::1%eth0"]))
    assert streams(root, "git") == ["", "[fe80::1%%eth0]:9418", "127.0.0.1:9418"]
    for listen in (["0.0.0.0", "10.0.0.1"], ["10.0.0.1", "::"], ["::", "0.0.0.0"]):
        with pytest.raises(UsageError, match="takes in"):
            plan_install(root, program, listen=listen)
    carry_out(plan_install(root, program, listen=["0.0.0.0", "fd00::1"]))
    assert streams(root, "git") == ["", "0.0.0.0:9418", "[fd00::1]:9418"]


@pytest.mark.parametrize(
    "address", ["10.0.0.1:7000", "mirror", "unix:run", "", "10.0.0", "fe80::1%a\nExecStartPre=true"]
)
def test_what_is_no_address_is_refused_before_anything_is_written(
    program: Path, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With code 2, and what is allowed."""
    monkeypatch.setattr(sys, "argv", [str(program), "install"])
    result = CliRunner().invoke(cli, ["install", "--root", str(tmp_path / "node"), "--listen", address])
    assert result.exit_code == 2 and "give an IP address" in result.output
    assert not (tmp_path / "node").exists()
