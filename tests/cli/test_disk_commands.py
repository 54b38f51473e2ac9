"""`disk`, `disk release`, `disks`: what they ask of a running `serve`, what they print, and what they refuse."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from appliance.cli.main import cli
from appliance.core.errors import TryLater
from appliance.core.layout import Layout
from appliance.core.node.state_dir import open_stores
from tests.api.disks import OLD, TIP, DiskServer


@pytest.fixture
def node(tmp_path: Path) -> Iterator[DiskServer]:
    """A node that serves, whose disks are a stand-in."""
    layout = Layout(tmp_path / "state")
    layout.state.mkdir()
    open_stores(layout).database.close()
    made = DiskServer(layout)
    yield made
    made.close()


def run(node: DiskServer | None, *words: str, state: Path | None = None) -> Result:
    """Runs a command in this process."""
    where = node.path.parent if node else state
    return CliRunner().invoke(cli, ["--state", str(where), *words], prog_name="gitmirror.pyz")


def test_a_disk_is_leased_listed_and_released(node: DiskServer) -> None:
    """What is printed has everything that the platform's next step needs."""
    leased = json.loads(run(node, "disk", "acme/widgets", "--json", "--guest", "vm-7").stdout)
    assert leased["id"] == "lease-0001" and [drive["role"] for drive in leased["drives"]] == ["tree", "data"]
    assert json.loads(run(node, "disks", "--json").stdout) == [leased]
    second = run(node, "disk", "--commit", OLD, "acme/widgets", "--format", "ext4").stdout
    lines = run(node, "disks").stdout.splitlines()
    assert re.split(" {2,}", lines[0]) == ["ID", "REPOSITORY", "BRANCH", "COMMIT", "GUEST", "FORM", "ENDS IN"]
    assert lines[1].split()[:4] == ["lease-0002", "acme/widgets", "main", OLD[:12]]
    assert lines[2].split()[:6] == ["lease-0001", "acme/widgets", "main", TIP[:12], "vm-7", "erofs"]
    assert f"tree         {node.disks.place}/tree" in second, "a drive whose size nobody may look at has none"
    assert f"gitmirror.pyz --state {node.path.parent} disk release lease-0002" in second
    done = run(node, "disk", "release", "lease-0001", "--json")
    assert (json.loads(done.stdout), done.stderr) == (leased, "lease lease-0001 of acme/widgets has ended\n")
    assert run(node, "disk", "release", "lease-0002").stdout == ""
    done = run(node, "disks")
    assert (done.exit_code, done.stdout) == (0, "") and "gitmirror.pyz disk REPO" in done.stderr


def test_what_a_person_is_shown(node: DiskServer) -> None:
    """The paths to attach, the line for the guest, how long it lasts, and the command that ends it on the same node."""
    (node.disks.place / "tree").write_bytes(bytes(3 << 20))
    (node.disks.place / "data").write_bytes(bytes(7 << 10))
    lines = run(node, "disk", "acme/widgets").stdout.splitlines()
    assert lines[0] == f"acme/widgets main at {TIP}"
    assert lines[2:5] == [
        "DRIVE     SIZE  PATH",
        f"tree   3.0 MiB  {node.disks.place}/tree",
        f"data   7.0 KiB  {node.disks.place}/data",
    ]
    assert lines[6] == "in the guest:  mount -t erofs -o ro,device=/dev/vdc /dev/vdb /workspace"
    assert lines[7].startswith("leased until:  2096-10-03T")
    assert lines[8] == f"to end it:     gitmirror.pyz --state {node.path.parent} disk release lease-0001"


def test_what_is_not_on_the_drives_is_said(node: DiskServer) -> None:
    """The first ten on stderr, all of it in the JSON."""
    done = run(node, "disk", "acme/widgets", "--submodules")
    lines = done.stderr.splitlines()
    assert lines[0] == "left out: module-0 (too many)" and len(lines) == 11
    assert lines[-1] == "and 2 more: --json lists them"
    leased = json.loads(run(node, "disk", "acme/widgets", "--submodules", "--json").stdout)
    assert leased["submodules"] is True and len(leased["missing"]) == 12


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ([], {}),
        (["--branch", "main"], {"branch": "main"}),
        (["--commit", OLD.upper()], {"commit": OLD}),
        (["--ttl", "90s", "--guest", "vm 7"], {"ttl": 90.0, "guest": "vm 7"}),
        (["--single"], {"form": "erofs-single"}),
        (["--format", "ext4"], {"form": "ext4"}),
        (["--format", "ext4", "--single"], {"form": "ext4"}),
        (["--submodules"], {"submodules": True}),
        (["--no-submodules"], {"submodules": False}),
    ],
)
def test_options_stand_before_and_after_the_repository(
    node: DiskServer, words: list[str], asked: dict[str, object]
) -> None:
    """By default two EROFS drives of the followed branch, for a day."""
    default = {"branch": None, "commit": None, "guest": None, "ttl": 86400.0, "form": "erofs"}
    assert run(node, "disk", "acme/widgets", *words).exit_code == 0
    assert run(node, "disk", *words, "acme/widgets").exit_code == 0
    assert node.disks.asked == [default | asked] * 2


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["disk"], 2, "Missing argument 'REPO'"),
        (["disk", "acme/widgets", "surplus"], 2, "surplus"),
        (["disk", "acme/widgets", "--branch", "main", "--commit", OLD], 2, "--branch and --commit cannot be combined"),
        (["disk", "acme/widgets", "--commit", OLD[:12]], 2, "not a full commit id"),
        (["disk", "acme/widgets", "--branch", "-x"], 2, "not a branch's name"),
        (["disk", "acme/widgets", "--ttl", "0s"], 2, "less than 1s"),
        (["disk", "acme/widgets", "--ttl", "366d"], 2, "--ttl may be at most 365d"),
        (["disk", "acme/widgets", "--guest", ""], 2, "--guest must not be empty"),
        (["disk", "acme/widgets", "--branch", ""], 2, "--branch must not be empty"),
        (["disk", "acme/widgets", "--format", "squashfs"], 2, "squashfs"),
        (["disk", "acme/widgets", "--branch", "other"], 1, "no branch other"),
        (["disk", "acme/nothing"], 2, "acme/nothing is not registered"),
        (["disk", "nothing"], 2, "nothing is not registered"),
        (["disk", "release"], 2, "Missing argument 'ID'"),
        (["disk", "release", ""], 1, "no lease ''"),
        (["disk", "release", "../repos"], 1, "no lease '../repos'"),
        (["disk", "release", "lease-0001"], 1, "no lease lease-0001"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_printed(node: DiskServer, words: list[str], code: int, said: str) -> None:
    done = run(node, *words)
    assert (done.exit_code, done.stdout) == (code, ""), done.output
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_node_that_is_busy_says_so(node: DiskServer) -> None:
    """Exit 1 and a hint, as for anything that `serve` cannot do."""
    node.disks.failure = TryLater("other disks are being built", retry_after=7)
    done = run(node, "disk", "acme/widgets")
    assert (done.exit_code, done.stderr) == (1, "error: other disks are being built\nhint: try again\n")


def test_names_of_strangers_are_escaped(node: DiskServer) -> None:
    """A platform may take a guest's name from anywhere."""
    run(node, "disk", "acme/widgets", "--guest", "\x1b[2J")
    assert "\\x1b[2J" in run(node, "disks").stdout


@pytest.mark.parametrize("words", [["disk", "acme/widgets"], ["disk", "release", "x"]], ids=" ".join)
@pytest.mark.parametrize("more", [[], ["--json"]], ids=["text", "json"])
def test_without_a_serve_they_refuse(tmp_path: Path, words: list[str], more: list[str]) -> None:
    """Exit 4, and what to do."""
    done = run(None, *words, *more, state=tmp_path / "state")
    assert (done.exit_code, done.stdout) == (4, "")
    assert done.stderr.startswith("error: serve is not running on ")


def test_leases_are_listed_without_a_serve(tmp_path: Path) -> None:
    """They outlive it: guests hold the drives."""
    layout = Layout(tmp_path / "state")
    stores = open_stores(layout)
    added = CliRunner().invoke(cli, ["--state", str(layout.state), "add-repo", "https://h/o/r", "--no-wait"])
    assert added.exit_code == 0, added.output
    lease = stores.disk_leases.issue(
        stores.registry.get("o/r"), branch="main", commit=TIP, form="erofs", generation=1, name="x" * 64,
        guest="vm-7", ttl=3600, of_tip=True,
    )  # fmt: skip
    stores.database.close()
    [listed] = json.loads(run(None, "disks", "--json", state=layout.state).stdout)
    assert (listed["id"], listed["guest"], len(listed["drives"])) == (lease.id, "vm-7", 2)
    assert f"{lease.id}  o/r" in run(None, "disks", state=layout.state).stdout


def test_a_branch_whose_name_is_not_utf_8(node: DiskServer) -> None:
    """As the list of refs shows it, or as a shell passes its bytes on."""
    for given in ("b\\xff\\xe9x", "b\udcff\udce9x"):
        done = run(node, "disk", "acme/widgets", "--branch", given)
        assert done.exit_code != 0 and "has no branch b\\xff\\xe9x" in done.stderr
    assert [asked["branch"] for asked in node.disks.asked] == ["b\\xff\\xe9x"] * 2
