"""The guest kit with `GITMIRROR_TOKEN`: hydrate, record and go on, the token in no argument, file or message."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.access.conftest import OTHER, SECRET, Node, Sampling, bearer, tip
from tests.conftest import WIDGETS
from tests.support.gitutil import commit_files, git, wait_until
from tests.workspace.conftest import BUSYBOX, CURL, GNU_WGET, NOTHING, Guest, Result, skip_where_the_shell_has_tools
from tests.workspace.web import get

GUESTS = [
    ("dash", CURL, "snapshot"),
    ("busybox", CURL, "snapshot"),
    ("bash", CURL, "snapshot"),
    ("dash", GNU_WGET, "snapshot"),
    ("busybox", GNU_WGET, "snapshot"),
    # busybox wget takes a header as an argument only.
    ("busybox", BUSYBOX, "mirror"),
    ("dash", NOTHING, "mirror"),
]


def guest_of(node: Node, home: Path, token: str, shell: str = "dash", tools: tuple[str, ...] | None = CURL) -> Guest:
    """A guest with a token for the node, whose own access to the upstream is refused."""
    home.mkdir(parents=True, exist_ok=True)
    kit = home / "guest.sh"
    kit.write_bytes(get(f"{node.serve.http_url}/guest.sh").body)
    env = {"GITMIRROR_DEADLINE": "20", "GITMIRROR_UPSTREAM": node.upstream.url(SECRET)}
    return Guest(home, kit, shell, tools, env | ({"GITMIRROR_TOKEN": token} if token else {}))


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def token(node: Node) -> str:
    """A token for `SECRET`, whose snapshot is ready."""
    issued = str(node.issue()["token"])
    wait_until(
        lambda: (
            get(f"{node.serve.http_url}/{SECRET}/workspace.tar", "HEAD", authorization=f"Bearer {issued}").status == 200
        ),
        message="the snapshot is ready",
    )
    return issued


def holds_nothing(result: Result, place: Path, token: str) -> None:
    """Asserts that neither the output nor any file of the workspace contains the token."""
    assert token not in result.out + result.err
    for path in place.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert token.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(("shell", "tools", "via"), GUESTS, ids=[f"{s}-{'-'.join(t) or 'git'}" for s, t, _ in GUESTS])
def test_hydrate_and_record(
    node: Node, tmp_path: Path, token: str, shell: str, tools: tuple[str, ...], via: str
) -> None:
    """With every set of guest tools. The token is in no process's arguments, no file and no message."""
    if "wget" in tools:
        skip_where_the_shell_has_tools(shell)
    guest = guest_of(node, tmp_path / "home", token, shell, tools)
    place, session = tmp_path / "work", f"kit-{shell}-{len(tools)}-{via}"
    with Sampling([token.encode()], files=["cmdline"]) as sampling:
        hydrated = guest.hydrate(place, repo=SECRET)
        assert hydrated.hydrated(via) == tip(node.upstream, SECRET)
        (place / "new").write_text("1\n")
        recorded = guest.record(session, place)
        commit = recorded.recorded(session)
    assert not sampling.found
    assert git("rev-parse", f"refs/agents/{session}", cwd=node.serve.mirror(SECRET)) == commit
    assert git("config", "remote.origin.url", cwd=place) == node.upstream.url(SECRET)
    holds_nothing(hydrated, place, token)
    holds_nothing(recorded, place, token)


def test_a_branch_a_commit_and_a_session(node: Node, tmp_path: Path, token: str) -> None:
    """What is fetched beside the snapshot goes over HTTP with the token too; settings by environment stay."""
    guest = guest_of(node, tmp_path / "home", token).with_(
        GIT_CONFIG_COUNT=1, GIT_CONFIG_KEY_0="user.name", GIT_CONFIG_VALUE_0="Someone"
    )
    first = git("rev-list", "--max-parents=0", "main", cwd=node.upstream.path(SECRET)).splitlines()[0]
    assert guest.hydrate(tmp_path / "commit", first, repo=SECRET).hydrated("snapshot") == first
    (tmp_path / "commit" / "new").write_text("1\n")
    turn = guest.record("kit-goes-on", tmp_path / "commit").recorded("kit-goes-on")
    assert git("log", "-1", "--format=%an", turn, cwd=node.serve.mirror(SECRET)) == "Someone"
    assert guest.hydrate(tmp_path / "session", "session:kit-goes-on", repo=SECRET).hydrated("snapshot") == turn
    lagging = guest.with_(GITMIRROR_MAX_LAG="1h").hydrate(tmp_path / "lag", repo=SECRET)
    assert lagging.hydrated("snapshot") == tip(node.upstream, SECRET)


@pytest.mark.parametrize("which", ["none", "other", "nonsense"])
def test_without_the_right_token_nothing_is_had(node: Node, tmp_path: Path, which: str) -> None:
    """The message says what may be wrong, and no file is left behind."""
    token = {"none": "", "other": str(node.issue(OTHER)["token"]), "nonsense": 'x"y'}[which]
    guest = guest_of(node, tmp_path / "home", token)
    result = guest.hydrate(tmp_path / "work", repo=SECRET)
    assert result.code == (2 if which == "nonsense" else 1) and not (tmp_path / "work").exists()
    if which == "other":
        assert "may be expired, revoked" in result.err and "a credential of its own" in result.err
    if token:
        assert token not in result.out + result.err


def test_a_traced_script_does_not_print_the_token(node: Node, tmp_path: Path, token: str) -> None:
    """A harness that runs with -x keeps its log."""
    guest = guest_of(node, tmp_path / "home", token)
    result = guest.run(f"set -x\ngitmirror_hydrate {SECRET} '{tmp_path}/work'")
    assert result.code == 0 and "gitmirror_hydrate" in result.err
    holds_nothing(result, tmp_path / "work", token)


def test_a_token_does_not_stand_in_the_way_of_what_is_open(node: Node, tmp_path: Path, token: str) -> None:
    """A public repository can still be fetched over HTTP."""
    guest = guest_of(node, tmp_path / "home", token).with_(GITMIRROR_UPSTREAM=node.upstream.url(WIDGETS))
    assert guest.hydrate(tmp_path / "work").hydrated("snapshot") == tip(node.upstream, WIDGETS)


def test_it_is_advanced_by_plain_git_too(node: Node, tmp_path: Path, token: str) -> None:
    """The second remote of a hydrated workspace answers once git is given the token."""
    guest = guest_of(node, tmp_path / "home", token)
    guest.hydrate(tmp_path / "work", repo=SECRET).hydrated("snapshot")
    commit_files(tmp_path / "work", {"x": "1\n"}, "x")
    assert git("ls-remote", "gitmirror", "HEAD", cwd=tmp_path / "work", env=bearer(token))
