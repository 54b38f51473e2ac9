"""`config check` and `config show`."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from appliance.cli.main import cli
from appliance.core.config.settings import SECTIONS, load_config, parse_config
from appliance.core.config.shown import to_toml
from appliance.core.ops.default_config import default_config

FULL = """
[serve]
git = ["127.0.0.1:9418", "unix:/run/git.sock"]
[refresh]
interval = "30s"
allow_local = true
[alerts]
command = 'page "now" \\u'
[[repos]]
url = "https://github.com/acme/widgets"
"""


def run(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--config", str(path), "config", *arguments])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gitmirror.toml"
    path.write_text(FULL)
    return path


def test_a_good_file_is_said_to_be_good(file: Path) -> None:
    done = run(file, "check")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == f"{file} is valid\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[serve\n", "not valid TOML"),
        ('[refresh]\nintervall = "1s"\n', "did you mean refresh.interval"),
        ('[[repos]]\nurl = "ftp://x/a/b"\n', "repos[1]"),
    ],
)
def test_a_bad_file_is_a_config_error(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    done = run(path, "check")
    assert done.exit_code == 2 and says in done.stderr


def test_warnings_leave_the_code_alone(tmp_path: Path) -> None:
    path = tmp_path / "odd.toml"
    path.write_text('[refresh]\ninterval = "1h"\n')
    done = run(path, "check")
    assert done.exit_code == 0 and "warning: refresh.stale_after" in done.stderr
    assert len(json.loads(run(path, "check", "--json").stdout)["warnings"]) == 1


def test_every_setting_is_shown_with_its_source(file: Path) -> None:
    found: dict[str, Any] = json.loads(run(file, "show", "--json").stdout)
    assert found["sections"].keys() == SECTIONS.keys()
    assert found["sections"]["refresh"]["interval"] == {"value": "30s", "source": "file"}
    assert found["sections"]["refresh"]["timeout"] == {"value": "10m", "source": "default"}
    assert [repo["url"]["value"] for repo in found["repos"]] == ["https://github.com/acme/widgets"]


def test_what_is_shown_is_a_config_of_the_same_meaning(file: Path, tmp_path: Path) -> None:
    printed = run(file, "show").stdout
    again = parse_config(printed, file)
    assert again == load_config(file)
    assert "# from the file" in printed and "# default" in printed


def test_the_config_of_install_shows_defaults_alone(tmp_path: Path) -> None:
    path = tmp_path / "installed.toml"
    path.write_bytes(default_config())
    assert "# from the file" not in run(path, "show").stdout


@pytest.mark.parametrize("value", ["", 'a"b\\c', "tab\there", "ü", True, 7, ["x", "y"]])
def test_values_are_written_as_toml(value: Any) -> None:
    assert tomllib.loads(f"key = {to_toml(value)}") == {"key": value}
