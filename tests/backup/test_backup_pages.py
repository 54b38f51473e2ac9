"""The commands that docs/operations.md gives for backups, run as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.backup.conftest import record_session, recorded
from tests.conftest import WIDGETS, ServeFactory
from tests.serving.conftest import SETTLED, Node
from tests.support.serve import ROOT, Serve
from tests.support.upstream import HttpUpstream

DIRECTORY, STATE = "/mnt/backup/gitmirror/node1", "/var/lib/gitmirror"


def commands(heading: str) -> list[list[str]]:
    """The lines of the `sh` blocks below a heading, as words."""
    text = (ROOT / "docs" / "operations.md").read_text()
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [words for block in blocks for line in block.splitlines() if (words := shlex.split(line, comments=True))]


def run(serve: Serve, words: list[str], target: Path) -> None:
    """Run one line on a node: a command of gitmirror, or what systemd would do."""
    if words[0] == "systemctl":
        assert words[2] == "gitmirror"
        serve.start() if words[1] == "start" else serve.terminate()
        return
    assert words[0] == "gitmirror.pyz"
    if words[1] == "status":
        serve.wait_for_repo(WIDGETS)
    serve.cli(*(word.replace(DIRECTORY, str(target)).replace(STATE, str(serve.state)) for word in words[1:]))


@pytest.mark.slow
def test_the_commands_of_the_page_move_a_node(
    serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path
) -> None:
    """Back up, verify, stop the old node, restore on another."""
    target = tmp_path / "backup"
    repos, backup = [upstream.url(WIDGETS)], {"to": str(target)}
    old = serve_factory("old", repos=repos, refresh=SETTLED, backup=backup).start()
    old.wait_for_repo(WIDGETS)
    record_session(Node(old, upstream), tmp_path / "guest", "s1")
    for heading in ("Backups", "Moving to another node"):
        lines = commands(heading)
        assert lines
        for words in lines:
            run(old, words, target)
    assert not old.running

    new = serve_factory("new", repos=repos, refresh=SETTLED, backup=backup)
    for words in commands("A node is gone"):
        run(new, words, target)
    assert new.running
    assert recorded(new.mirror(WIDGETS)) == recorded(old.mirror(WIDGETS))
    assert new.cli_json("status")["backup"]["to"] == str(target)


@pytest.mark.slow
def test_the_commands_of_the_page_bring_a_database_back(
    serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path
) -> None:
    """It is gone while serve runs. The page's commands restore it, and pushes go on."""
    target = tmp_path / "backup"
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED, backup={"to": str(target)}).start()
    serve.keep_ports()
    serve.wait_for_repo(WIDGETS)
    node = Node(serve, upstream)
    record_session(node, tmp_path / "guest", "s1")
    serve.cli("backup")
    (serve.state / "gitmirror.db").unlink()
    for words in commands("A lost database"):
        run(serve, words, target)
    assert serve.cli_json("status", codes=(0,))["pushes"]["off"] is None
    record_session(node, tmp_path / "guest", "s2")
    assert {session["session"] for session in serve.cli_json("sessions")} == {"s1", "s2"}
