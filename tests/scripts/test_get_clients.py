"""scripts/get_clients.sh, with a `go` that needs no network."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.serve import ROOT

WORKING = """#!/bin/sh
[ "$1" != build ] || cp main.go client
"""
BROKEN = """#!/bin/sh
echo "no route to the module" >&2
exit 1
"""


@pytest.fixture
def go(tmp_path: Path) -> Path:
    """The `go` that the script finds first."""
    path = tmp_path / "bin" / "go"
    path.parent.mkdir()
    path.touch(mode=0o755)
    return path


def get(tmp_path: Path, *names: str) -> tuple[int, str, str]:
    """The exit code and the output of the script."""
    env = {**os.environ, "GITMIRROR_CLIENTS": str(tmp_path / "got"), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    script = str(ROOT / "scripts" / "get_clients.sh")
    done = subprocess.run(["bash", script, *names], env=env, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_a_client_is_made_once_for_each_program(go: Path, tmp_path: Path) -> None:
    """It is made anew when the checkout has another program."""
    go.write_text(WORKING)
    got = tmp_path / "got" / "go-git"
    code, out, _ = get(tmp_path, "go-git")
    assert code == 0 and "as before" not in out
    program = (ROOT / "tests" / "clients" / "programs" / "gogit.go").read_bytes()
    assert (got / "client").read_bytes() == program
    assert "as before" in get(tmp_path, "go-git")[1]
    (got / "program").write_text("package older\n")
    assert "as before" not in get(tmp_path, "go-git")[1]
    assert (got / "program").read_bytes() == program


def test_a_client_that_cannot_be_had_is_named(go: Path, tmp_path: Path) -> None:
    """With the reason; nothing of it looks whole, and the next call tries again."""
    go.write_text(BROKEN)
    code, _, err = get(tmp_path, "go-git")
    assert code == 1
    assert err.startswith("get_clients.sh: go-git cannot be had here, see ")
    assert err.endswith(": no route to the module\n")
    assert not (tmp_path / "got" / "go-git" / "version").exists()
    go.write_text(WORKING)
    assert get(tmp_path, "go-git")[0] == 0


def test_an_unknown_client_is_refused(tmp_path: Path) -> None:
    """Before anything is made."""
    code, _, err = get(tmp_path, "cvs")
    assert (code, err.splitlines()[0][:47]) == (1, "get_clients.sh: no client is called cvs; there ")
    assert not list((tmp_path / "got").glob("*/version"))
