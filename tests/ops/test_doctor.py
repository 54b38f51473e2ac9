"""Each check of `doctor` can fail, and then says how to mend it."""

from __future__ import annotations

import grp
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.core.config.settings import parse_config
from appliance.core.layout import Layout
from appliance.core.node.node import Node
from appliance.core.node.state_dir import open_stores
from appliance.core.ops.doctor import Check, examine
from appliance.core.workspace.disk.sharing import problem_of_group
from tests.conftest import ServeFactory

OFF = '[serve]\ngit = ""\nhttp = ""\nadmin = ""\n'


def appliance(tmp_path: Path, settings: str = OFF) -> Node:
    """A node that does not serve, with listeners off unless the settings say otherwise."""
    return Node(Layout(tmp_path / "state"), parse_config(settings, tmp_path / "gitmirror.toml"))


def looked_at(tmp_path: Path, name: str, settings: str = OFF) -> Check:
    """The check of that name."""
    [found] = [check for check in examine(appliance(tmp_path, settings)) if check.name == name]
    return found


def mended(check: Check) -> str:
    """What a failed check says to do."""
    assert not check.ok, check
    assert check.found and check.mend
    return check.mend


def test_a_fresh_machine_is_in_order_and_stays_untouched(tmp_path: Path) -> None:
    """Before the first serve: nothing to mend, and nothing was made."""
    checks = examine(appliance(tmp_path))
    assert [check for check in checks if not check.ok] == []
    assert not (tmp_path / "state").exists()


def test_every_subject_of_the_contract_is_looked_at(tmp_path: Path) -> None:
    """git, git daemon, disk, permissions, ports, config, hooks."""
    names = {check.name for check in examine(appliance(tmp_path))}
    assert names >= {"git", "git daemon", "disk", "state directory", "config", "hooks", "database", "serve"}
    assert names >= {"port git", "port http", "port admin"}


def fake_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Puts a program called git first on PATH."""
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


def test_git_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of its checks say what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install git 2.39 or newer" in mended(looked_at(tmp_path, "git"))
    assert "install git's daemon" in mended(looked_at(tmp_path, "git daemon"))


@pytest.mark.parametrize("said", ["git version 2.30.2", "git version 1.8", "nonsense", ""])
def test_git_that_is_too_old_or_odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """What it is, and what is needed."""
    fake_git(tmp_path, monkeypatch, f'echo "{said}"')
    assert "2.39 or newer" in mended(looked_at(tmp_path, "git"))


def test_git_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken wrapper is not git."""
    fake_git(tmp_path, monkeypatch, "exit 1")
    assert mended(looked_at(tmp_path, "git"))
    assert mended(looked_at(tmp_path, "git daemon"))


def test_git_that_was_never_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, and no failure."""
    fake_git(tmp_path, monkeypatch, 'echo "git version 2.56.1"')
    check = looked_at(tmp_path, "git")
    assert check.ok and "newer than the versions that were tested: 2.39 to 2.55" in check.found


@pytest.mark.parametrize("said", ["git version 2.39.5", "git version 2.50.1.windows.1", "git version 3.0.rc0"])
def test_git_that_is_new_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """Whatever a distribution appends."""
    fake_git(tmp_path, monkeypatch, f'echo "{said}"')
    assert looked_at(tmp_path, "git").ok


def test_git_without_its_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On some distributions it is a package of its own."""
    fake_git(tmp_path, monkeypatch, f'echo "{tmp_path}"')
    assert "git-daemon on Fedora and Alpine" in mended(looked_at(tmp_path, "git daemon"))


def test_a_config_that_warns_and_one_that_lists_nonsense(tmp_path: Path) -> None:
    """The second is found here and not only when serve starts."""
    assert mended(looked_at(tmp_path, "config", OFF + '[refresh]\ninterval = "1h"\n'))
    check = looked_at(tmp_path, "config", OFF + '[[repos]]\nurl = "ssh://h/a/b"\n')
    assert mended(check)
    assert "repos[1]" in check.found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_state_directory_with_anothers_files(tmp_path: Path) -> None:
    """As after a command that ran as root by other means; the file is named."""
    (tmp_path / "state" / "mirrors").mkdir(parents=True)
    os.chown(tmp_path / "state" / "mirrors", 12345, 12345)
    check = looked_at(tmp_path, "state directory")
    assert "chown" in mended(check)
    assert "mirrors" in check.found


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_state_directory_that_may_not_be_written(tmp_path: Path) -> None:
    """What to do about it."""
    (tmp_path / "state").mkdir(mode=0o500)
    assert "chown" in mended(looked_at(tmp_path, "state directory"))


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below two gigabytes."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=2**30))
    assert "make room" in mended(looked_at(tmp_path, "disk"))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=3 * 2**30))
    assert looked_at(tmp_path, "disk").ok


def test_a_mount_on_which_nothing_can_be_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """git skips a hook that it cannot execute, and accepts the push."""
    real = os.statvfs(tmp_path)

    def noexec(place: Path) -> os.statvfs_result:
        assert place == tmp_path, "the nearest directory that is there"
        return os.statvfs_result([*real[:8], real.f_flag | os.ST_NOEXEC, *real[9:]])

    monkeypatch.setattr(os, "statvfs", noexec)
    assert "without noexec" in mended(looked_at(tmp_path, "hooks"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: path.write_bytes(b"nonsense" * 1000),
    ],
    ids=["directory", "garbage"],
)
def test_a_database_that_cannot_be_read(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    """The message says what is there instead."""
    layout = Layout(tmp_path / "state")
    open_stores(layout).database.close()
    for beside in layout.state.glob("gitmirror.db-*"):
        beside.unlink()
    spoil(layout.database)
    assert mended(looked_at(tmp_path, "database"))


def test_a_log_that_was_tampered_with(tmp_path: Path) -> None:
    """The first event that does not hold is named."""
    layout = Layout(tmp_path / "state")
    stores = open_stores(layout)
    with stores.database.writing() as connection:
        connection.execute(
            "INSERT INTO audit_events (id, kind, at, push, repo, ref, client, prev, hash) "
            "VALUES (1, 'attempt', '', '', '', '', '', '', 'x')"
        )
    stores.database.close()
    check = looked_at(tmp_path, "database")
    assert "audit verify" in mended(check)
    assert "broken at event 1" in check.found


@pytest.mark.parametrize("name", ["git", "http", "admin"])
def test_a_port_that_somebody_else_has(tmp_path: Path, name: str) -> None:
    """The setting to change is named; the others are off."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = OFF.replace(f'{name} = ""', f'{name} = "{address}"')
        check = looked_at(tmp_path, f"port {name}", settings)
        assert f"--{name}" in mended(check)
        assert address in check.found
    assert looked_at(tmp_path, f"port {name}", settings).ok


def test_an_interpreter_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as an old one gets at all."""
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    assert "3.11" in mended(looked_at(tmp_path, "python"))


def test_a_group_for_drives_that_is_not_there(tmp_path: Path) -> None:
    """Nothing is said without one."""
    check = looked_at(tmp_path, "disk_group", OFF + '[workspace]\ndisk_group = "no-such-group"\n')
    assert "no group no-such-group" in check.found and "[workspace] disk_group" in mended(check)
    assert "disk_group" not in {each.name for each in examine(appliance(tmp_path))}


def test_a_group_for_drives_that_cannot_pass(tmp_path: Path) -> None:
    """Others must be able to pass through the state directory, or its group be that group."""
    name = OTHER_GROUP.gr_name
    settings = f'{OFF}[workspace]\ndisk_group = "{name}"\n'
    (tmp_path / "state").mkdir(mode=0o750)
    check = looked_at(tmp_path, "disk_group", settings)
    assert f"members of {name} cannot pass through {tmp_path / 'state'}" == check.found
    assert "StateDirectoryMode=0751" in mended(check) and f"SupplementaryGroups={name}" in check.mend
    (tmp_path / "state").chmod(0o751)
    assert looked_at(tmp_path, "disk_group", settings).ok


OTHER_GROUP = next(entry for entry in grp.getgrall() if entry.gr_gid not in (os.getegid(), *os.getgroups()))


def test_a_service_that_may_not_give_files_to_the_group(tmp_path: Path) -> None:
    """The groups that count are those of the running process, which only systemd and the kernel know."""
    argv = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    if os.geteuid() == 0:
        argv = ["setpriv", "--bounding-set=-chown", "--inh-caps=-all", *argv]
        if shutil.which("setpriv") is None:
            pytest.skip("root gives files to every group, and setpriv is missing to change that")
    tmp_path.chmod(0o751)
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as service:
        try:
            assert service.stdout is not None and service.stdout.readline()
            problem = problem_of_group(OTHER_GROUP.gr_name, tmp_path, service.pid)
            assert problem is not None and "may not give files" in problem[0] and "SupplementaryGroups=" in problem[1]
            own = grp.getgrgid(os.getegid()).gr_name
            assert problem_of_group(own, tmp_path, service.pid) is None
        finally:
            service.kill()


@pytest.mark.parametrize("tool", ["mke2fs", "debugfs"])
def test_without_e2fsprogs_only_one_form_of_disks_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    """Doctor mentions it, and reports nothing to mend."""
    monkeypatch.setattr(shutil, "which", lambda name, *rest, **more: None if name == tool else f"/usr/sbin/{name}")
    check = looked_at(tmp_path, "e2fsprogs")
    assert check.ok and "--format ext4" in check.found and "e2fsprogs" in check.found


@pytest.mark.slow
def test_the_command_exits_3_and_says_how_to_mend(serve_factory: ServeFactory) -> None:
    """On the terminal and as JSON; in order it exits 0."""
    serve = serve_factory(serve={"git": "", "http": "", "admin": ""})
    done = serve.cli("doctor")
    assert "FAIL" not in done.stdout
    assert all(check["ok"] for check in serve.cli_json("doctor", codes=[0]))
    serve.configure(serve={"git": "", "http": "", "admin": ""}, refresh={"interval": "1h"})
    done = serve.cli("doctor", check=False)
    assert done.returncode == 3
    assert "FAIL  config: " in done.stdout
    assert "      fix: " in done.stdout
    [failed] = [check for check in serve.cli_json("doctor", codes=[3]) if not check["ok"]]
    assert failed.keys() == {"name", "ok", "found", "mend"}
    assert failed["name"] == "config" and failed["mend"]


def test_secrets_and_commands_are_looked_at_when_they_are_set(tmp_path: Path) -> None:
    """A file that is not there or empty, a command that cannot be run; nothing is said of what is not set."""
    secret, token = tmp_path / "secret", tmp_path / "token"
    secret.write_text("x\n")
    token.touch()
    settings = f'{OFF}[refresh]\nwebhook_secret_file = "{secret}"\ntoken_file = "{token}"\n'
    settings += '[alerts]\ncommand = "sh -c true"\n[events]\ncommand = ["/nowhere/take"]\n'
    assert looked_at(tmp_path, "webhook_secret_file", settings).ok
    assert "empty" in looked_at(tmp_path, "token_file", settings).found
    assert looked_at(tmp_path, "alerts command", settings).ok
    assert "[events]" in mended(looked_at(tmp_path, "events command", settings))
    secret.unlink()
    assert "cannot be read" in looked_at(tmp_path, "webhook_secret_file", settings).found
    names = {check.name for check in examine(appliance(tmp_path))}
    assert not names & {"webhook_secret_file", "token_file", "alerts command", "events command"}
