"""docs/first-guests.md: its commands are typed in their order, against a real node, and print what stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from glob import glob
from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.gitutil import git
from tests.support.serve import ROOT, Serve, wait_until
from tests.support.upstream import HttpUpstream

PAGE = (ROOT / "docs" / "first-guests.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(console|)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
NAME = "jomcgi/homelab"


def steps() -> list[tuple[str, str]]:
    """Each block of commands with the output that stands below it; "" is none. The first block starts the node."""
    found: list[tuple[str, str]] = []
    for kind, text in BLOCKS:
        if kind == "console":
            found.append((text, ""))
        else:
            found[-1] = (found[-1][0], text)
    return found


def shape(output: str) -> re.Pattern[str]:
    """What an output must look like: ids and times may differ."""
    text = re.escape(output).replace("\\ ", " ")
    text = re.sub(r"\b[0-9a-f]{40}\b", "[0-9a-f]{40}", text)
    return re.compile(re.sub(r"ms=\d+", r"ms=\\d+", text))


def here(serve: Serve, text: str) -> str:
    """The text with the ports of this node."""
    return text.replace("git://127.0.0.1:9418", serve.git_url).replace("http://127.0.0.1:9419", serve.http_url)


def config_of(serve: Serve) -> Path:
    """The global config of git in the guest, which the redirect changes."""
    config = serve.home / ".gitconfig"
    config.touch()
    return config


def typed(serve: Serve, directory: Path, upstream: str, text: str) -> str:
    """Runs a block in a shell of its own, as in a terminal in which the lines before were typed; returns its stdout."""
    program = directory / "bin" / "gitmirror.pyz"
    if not program.exists():
        program.parent.mkdir()
        argv = f'exec {sys.executable} -m appliance --config {serve.config} "$@"'
        program.write_text(f"#!/bin/sh\nexport PYTHONPATH={ROOT}\n{argv}\n")
        program.chmod(0o755)
    text = here(serve, text).replace(f"https://github.com/{NAME}", upstream)
    path = f"{program.parent}:{serve.env['PATH']}"
    env = {**serve.env, "PATH": path, "GITMIRROR_STATE": str(serve.state), "GIT_CONFIG_GLOBAL": str(config_of(serve))}
    before = ". ./guest.sh\n" if (directory / "guest.sh").exists() else ""
    done = subprocess.run(
        ["sh", "-eu"], input=before + text, cwd=directory, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}\n{serve.log()[-2000:]}"
    return done.stdout


def test_the_first_step_starts_a_node() -> None:
    """Which the test below starts itself, on ports of its own."""
    commands, output = steps()[0]
    assert commands.endswith("gitmirror.pyz --state node serve\n")
    assert output == "ready git://127.0.0.1:9418 http://127.0.0.1:9419 admin http://127.0.0.1:9420\n"


@pytest.mark.slow
def test_one_gets_from_nothing_to_a_fleet_of_guests(upstream: HttpUpstream, tmp_path: Path) -> None:
    """Every block of the page, in order."""
    upstream.add(NAME, upstream.path(WIDGETS))
    with Serve(tmp_path / "hot" / "node") as serve:
        walk(serve.start(), upstream, serve.state.parent)


def walk(serve: Serve, upstream: HttpUpstream, directory: Path) -> None:
    """Types everything after the start of the node, and compares what it prints."""
    printed = []
    for commands, output in steps()[1:]:
        printed.append(typed(serve, directory, upstream.url(NAME), commands))
        if output:
            assert shape(here(serve, output)).fullmatch(printed[-1]), printed[-1]
        if "add-repo" in commands:
            # The page says that the tar may not be there right after this; the walk waits for it.
            path = serve.state / "workspaces"
            wait_until(lambda path=path: glob(f"{path}/**/*.tar", recursive=True), message="the first snapshot")  # type: ignore[misc]
    everything = "".join(printed)
    for words in (
        "+An agent was here.\n+And here.\n",
        "refused, as it should be",
        "refused: this session is not its own",
    ):
        assert words in everything
    assert re.search(r"refs/heads/main +\w+ +rejected", everything)
    assert re.search(r"docs-1 .*accepted .*vm-3", everything)
    assert git("log", "-1", "--format=%s", cwd=directory / "replay") == "Turn of fix-readme"
    assert "path" not in config_of(serve).read_text()
    assert (directory / "many-20" / "README.md").exists()
