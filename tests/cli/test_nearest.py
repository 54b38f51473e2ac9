"""Wrong usage: the error names what was probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from appliance.cli.main import cli
from tests.support.terminal import EVIL, unsafe


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("stauts", "No such command 'stauts'. Did you mean 'status'?"),
        ("add-rpeo https://h/a/b", "Did you mean 'add-repo'?"),
        ("session dif a/b s", "No such command 'dif'. Did you mean 'diff'?"),
        ("verfy", "Did you mean 'verify'?"),
        ("show a/b s", "No such command 'show'. Did you mean 'config show' or 'session show'?"),
        ("disk relase 1f0c", "Did you mean 'disk release'?"),
        ("backup verfiy /mnt", "Did you mean 'backup verify'?"),
        ("status --jsno", "No such option '--jsno'. Did you mean '--json'?"),
        ("session show a/b s --jon", "No such option '--jon'. Did you mean '--json'?"),
        ("--confg x status", "No such option '--confg'. Did you mean '--config'?"),
        ("status --state x", "It stands before the command: gitmirror.pyz --state DIR COMMAND"),
        ("session log a/b s --no-pager", "It stands before the command: gitmirror.pyz --no-pager COMMAND"),
        ("status --sate x", "Did you mean '--state'? It stands before the command"),
        ("--json status", "It stands behind the command: gitmirror.pyz COMMAND --json"),
        ("completion fsh", "'fsh' is not one of 'bash', 'zsh', 'fish'"),
        ("audit --verdict acepted", "is not one of 'accepted', 'rejected'"),
    ],
)
def test_the_nearest_is_named(tmp_path: Path, line: str, meant: str) -> None:
    """Commands, subcommands and options; also where it stands in the wrong place."""
    done = CliRunner().invoke(
        cli, line.split(), prog_name="gitmirror.pyz", env={"GITMIRROR_STATE": str(tmp_path / "s")}
    )
    assert (done.exit_code, done.stdout) == (2, "")
    assert meant in done.stderr
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("line", ["dance", "session dance", "status --dance", "disk a/b dance"])
def test_what_is_near_to_nothing_gets_no_advice(line: str) -> None:
    """A wrong guess is worse than none."""
    done = CliRunner().invoke(cli, line.split(), prog_name="gitmirror.pyz")
    assert done.exit_code == 2 and "dance" in done.stderr
    assert "Did you mean" not in done.stderr


def test_what_is_quoted_is_escaped() -> None:
    """A shell may have completed it from a name that a guest chose."""
    for words in ([EVIL], ["session", EVIL], ["status", f"--{EVIL}"], ["disk", "a/b", EVIL], ["completion", EVIL]):
        done = CliRunner().invoke(cli, words, prog_name="gitmirror.pyz")
        assert done.exit_code == 2 and not unsafe(done.stderr)
