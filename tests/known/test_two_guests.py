"""The life of two guests of one repository over two unix sockets, where only known guests may push."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.access.conftest import SECRET
from tests.conftest import WIDGETS
from tests.known.conftest import KnownNode, ls_remote
from tests.serving.conftest import audit
from tests.support.gitutil import git, wait_until


@pytest.mark.slow
def test_two_guests_of_one_repository(node: KnownNode, tmp_path: Path) -> None:
    """Each records into its own session with no credential and reads what it was given; the log tells them apart."""
    serve = node.serve
    unix = [node.path("vm-7"), node.path("vm-8")]
    one = serve.cli_json("guest", "add", "vm-7", "--session", "fix-dns", "--repo", SECRET, "--unix", unix[0])
    two = serve.cli_json("guest", "add", "vm-8", "--session", "tidy-up", "--unix", unix[1])
    assert (one["sessions"], one["repos"], one["unix"], one["shared"]) == (["fix-dns"], [SECRET], unix[0], {})
    assert (two["token"], two["problem"]) == (None, None)
    for path in (f"{each}_{port}" for each in unix for port in (9418, 9419)):
        assert stat.S_ISSOCK(Path(path).stat().st_mode)
    roads = {"vm-7": node.by_socket("vm-7"), "vm-8": node.by_socket("vm-8")}
    own = {"vm-7": "fix-dns", "vm-8": "tidy-up"}
    other = {"vm-7": "tidy-up", "vm-8": "fix-dns"}

    # Each hydrates and records by the kit, into its own session and not into that of the other.
    recorded = {}
    for name, road in roads.items():
        home, work = tmp_path / name, tmp_path / name / "work"
        code, last, said = node.kit(road, home, "hydrate", WIDGETS, str(work))
        assert code == 0 and last.startswith("hydrated via=snapshot "), said
        (work / "turn.txt").write_text(f"{name}\n")
        code, last, said = node.kit(road, home, "record", own[name], str(work))
        assert code == 0 and last.startswith(f"recorded ref=refs/agents/{own[name]} commit="), said
        recorded[name] = last.rpartition("=")[2]
        (work / "turn.txt").write_text(f"{name} again\n")
        code, last, said = node.kit(road, home, "record", other[name], str(work))
        assert code == 1 and f"this guest may only write refs/agents/{own[name]}" in said, said
        for protocol in ("git", "http"):
            url = road.url(protocol)
            assert git("ls-remote", url, f"refs/agents/{own[name]}").split()[0] == recorded[name]
    assert {own[name]: commit for name, commit in recorded.items()} == {
        ref.removeprefix("refs/agents/"): oid for ref, oid in node.refs_of_agents().items()
    }

    # The private repository is read by the one, and is not there for the other.
    for protocol in ("git", "http"):
        assert ls_remote(roads["vm-7"].url(protocol, SECRET))[0] == 0
        code, said = ls_remote(roads["vm-8"].url(protocol, SECRET))
        assert code != 0 and ("not mirrored here" in said or "not found" in said), said
    code, last, said = node.kit(
        roads["vm-7"], tmp_path / "vm-7", "hydrate", SECRET, str(tmp_path / "secret"), repo=SECRET
    )
    assert code == 0 and last.startswith("hydrated via=snapshot "), said

    # The log, the sessions and the activity tell them apart.
    rows = {(row["guest"], row["session"], row["verdict"], row["client"]) for row in audit(serve)}
    assert {(name, own[name], "accepted", f"unix:{name}") for name in own} <= rows
    assert {(name, other[name], "rejected", f"unix:{name}") for name in own} <= rows
    assert {(row["session"], row["guest"]) for row in serve.cli_json("sessions")} == {
        (session, name) for name, session in own.items()
    }
    assert {row["guest"] for row in serve.cli_json("audit", "--guest", "vm-7")} == {"vm-7"}
    assert [row["session"] for row in serve.cli_json("sessions", "--guest", "vm-8")] == ["tidy-up"]
    # Hydrations are stored a moment after they end.
    wait_until(
        lambda: {row["repo"] for row in serve.cli_json("activity", "--guest", "vm-7")} == {WIDGETS, SECRET},
        message="both hydrations of vm-7 are in the activity",
    )
    [turn] = serve.cli_json("session", "show", WIDGETS, "tidy-up")["turns"]
    assert turn["guest"] == "vm-8"
    shown = {each["name"]: each for each in serve.cli_json("guests")}
    assert shown["vm-8"]["last"]["repo"] == WIDGETS and shown["vm-8"]["sessions"] == ["tidy-up"]
    serve.here("audit", "verify")

    # A restart keeps them; who is removed leaves no file behind.
    serve.restart()
    serve.wait_for_repo(WIDGETS)
    for name, road in roads.items():
        code, said = ls_remote(road.url("git"))
        assert code == 0, (name, said)
    for name in own:
        serve.cli("guest", "remove", name)
    assert list(node.sockets.iterdir()) == []
    assert serve.cli_json("guests") == []
