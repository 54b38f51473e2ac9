"""What guests' sockets need of the system: the drop-in that `install` writes, and what `doctor` finds missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from appliance.core.config.settings import GuestsConfig, parse_config
from appliance.core.ops.guest_checks import guests_drop_in, problems_of_sockets
from appliance.core.ops.install import DROP_IN, plan_install
from tests.support.serve import ROOT

SETTINGS = """
[serve]
git = ["127.0.0.1:9418", "vsock:9418", "unix:/run/mirror/git.sock"]
[guests]
socket_directories = ["/run/fc", "/srv/a b%c"]
socket_group = "root"
"""


def test_the_drop_in_opens_what_the_config_names(tmp_path: Path) -> None:
    """And systemd takes it."""
    text = guests_drop_in(parse_config(SETTINGS, Path("x"))).decode()
    assert text.splitlines()[2:] == [
        "[Service]", 'ReadWritePaths="-/run/fc"', 'ReadWritePaths="-/srv/a b%%c"', "SupplementaryGroups=root",
        "RestrictAddressFamilies=AF_VSOCK", 'ReadWritePaths="-/run/mirror"',
    ]  # fmt: skip
    assert guests_drop_in(parse_config("", Path("x"))) == b""
    if not shutil.which("systemd-analyze"):
        return
    unit = tmp_path / "gitmirror.service"
    unit.write_text("[Service]\nExecStart=/bin/true\nRestrictAddressFamilies=AF_INET\n")
    (tmp_path / "gitmirror.service.d").mkdir()
    (tmp_path / "gitmirror.service.d" / "guests.conf").write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_install_follows_the_config(tmp_path: Path) -> None:
    """A directory that is named later, and one that is named no more."""
    program, root = tmp_path / "gitmirror.pyz", tmp_path / "root"
    with zipfile.ZipFile(program, "w") as packed:
        packed.writestr("__main__.py", "")
    root.mkdir()
    drop_in, config = root / DROP_IN.relative_to("/"), root / "etc/gitmirror/gitmirror.toml"
    written = []
    for text in (None, '[guests]\nsocket_directories = ["/run/fc"]\n', "nonsense", ""):
        if text is not None:
            config.write_text(text)
        for step in plan_install(root, program).steps:
            step.apply()
        written.append(drop_in.read_text() if drop_in.exists() else None)
    assert written[0] is None and "/run/fc" in str(written[1])
    assert written[2] == written[1] and "[Service]" not in str(written[3])


def test_what_doctor_finds(tmp_path: Path) -> None:
    """Each with how to mend it."""
    fine, missing = tmp_path / "fine", tmp_path / "missing"
    fine.mkdir()
    assert list(problems_of_sockets(GuestsConfig((str(fine),)), os.getpid())) == []
    [(found, mend)] = problems_of_sockets(GuestsConfig((str(fine), str(missing))), None)
    assert "missing is not a directory" in found and "socket_directories" in mend
    [(found, _)] = problems_of_sockets(GuestsConfig((), "no-such-group"), None)
    assert "no group no-such-group" in found


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
def test_a_directory_that_the_sandbox_closes(tmp_path: Path) -> None:
    """As ProtectSystem=strict does: the process sees it read-only, although the system does not."""
    script = f"mount --bind {tmp_path} {tmp_path} && mount -o remount,ro,bind {tmp_path} && echo in && exec sleep 60"
    process = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"in\n":
            pytest.skip("mounts are not allowed here")
        [(found, mend)] = problems_of_sockets(GuestsConfig((str(tmp_path),)), process.pid)
        assert "read-only in the sandbox" in found and "install" in mend
    finally:
        process.kill()
        process.wait()
