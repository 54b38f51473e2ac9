"""docs/gitmirror.1: it is what the commands say, and renders without a complaint."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from tests.cli.test_cli_help import COMMANDS
from tests.support.serve import ROOT

PAGE = ROOT / "docs" / "gitmirror.1"


def test_the_page_is_what_the_commands_say() -> None:
    """scripts/man_page.py would write it as it stands, every command with its options."""
    argv = [sys.executable, "scripts/man_page.py", "--check"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    sections = set(re.findall(r"^\.SS (.+)$", PAGE.read_text().replace("\\-", "-"), re.MULTILINE))
    assert sections == {" ".join(words) for words in COMMANDS}


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_the_page_renders_without_a_warning() -> None:
    """Examples keep their lines, and hyphens can be copied into a shell."""
    argv = ["groff", "-man", "-ww", "-Tutf8", "-rLL=200n", "-P-c", str(PAGE)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"})
    assert done.stderr == ""
    plain = re.sub(".\b", "", done.stdout)
    for line in ("  gitmirror.pyz session diff jomcgi/homelab my-session --stat\n", "GITMIRROR_PAGER, PAGER\n"):
        assert line in plain, plain[:3000]
