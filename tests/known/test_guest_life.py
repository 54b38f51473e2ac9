"""How guests become known and stop being so: by the command, by the API, by time, and with and without a `serve`."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.core.api.client import call
from appliance.core.errors import Conflict, GitmirrorError
from appliance.core.layout import Layout
from appliance.core.node.state_dir import open_stores
from appliance.core.process.control_socket import short_name
from appliance.core.process.socket_identity import socket_identity
from appliance.core.store.guests import GuestOrder
from tests.access.conftest import SECRET
from tests.conftest import WIDGETS
from tests.known.conftest import KnownNode, by_unix, ls_remote
from tests.support.gitutil import wait_until
from tests.support.pkt import ZERO, raw_push
from tests.support.serve import CommandFailed, Serve
from tests.workspace.web import get


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Serve]:
    """A state directory on which no `serve` runs."""
    yield Serve(tmp_path / "state")


def api(serve: Serve, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    return call(Layout(serve.state), method, path, body)


@pytest.mark.slow
def test_the_command_says_what_a_platform_needs(node: KnownNode) -> None:
    """The token alone on stdout, once; sessions that two may write are named; the same order may come again."""
    serve, order = node.serve, ["--session", "a-*", "--session", "own", "--address", "127.1.0.1"]
    first = serve.cli("guest", "add", "vm-a", *order, "--ttl", "1h")
    assert first.stdout == "" and "the guest vm-a is known by 127.1.0.1 until 2" in first.stderr
    again = serve.cli_json("guest", "add", "vm-a", *order, "--ttl", "1h")
    assert (again["name"], again["token"], again["shared"]) == ("vm-a", None, {})
    refused = serve.cli("guest", "add", "vm-a", *order, check=False)
    assert refused.returncode == 2 and "the guest vm-a is known already" in refused.stderr
    second = serve.cli("guest", "add", "vm-b", "--token", "--session", "a-1", "--session", "b-*", "--session", "ow*")
    assert second.stdout.startswith("gmg_") and len(second.stdout) == 48 and second.stdout.endswith("\n")
    said = second.stderr.splitlines()
    assert said[:2] == ["session a-1 may also be written by vm-a", "session ow* may also be written by vm-a"], said
    refused = serve.cli("guest", "add", "vm-b", "--token", check=False)
    assert refused.returncode == 2 and "a token cannot be shown again" in refused.stderr
    shown = {each["name"]: each for each in serve.cli_json("guests")}
    assert shown["vm-b"]["has_token"] and second.stdout.strip() not in json.dumps(shown)
    table = serve.here("guests")
    assert "127.1.0.1" in table and "a-*, own" in table and table.splitlines()[0].startswith("GUEST  COMES BY")
    for name in ("vm-a", "vm-b"):
        assert serve.cli_json("guest", "remove", name)["name"] == name
    gone = serve.cli("guest", "remove", "vm-a", check=False)
    assert gone.returncode == 1 and "there is no known guest vm-a" in gone.stderr


@pytest.mark.parametrize(
    ("order", "status", "words"),
    [
        ({"name": "x"}, 400, "nothing says how x comes"),
        ({"name": "-x", "token": True}, 400, "is not a guest's name"),
        ({"name": "../x", "token": True}, 400, "is not a guest's name"),
        ({"name": "x" * 65, "token": True}, 400, "is not a guest's name"),
        ({"name": "x", "token": True, "sessions": ["a b"]}, 400, "is not a session"),
        ({"name": "x", "token": True, "sessions": ["*x"]}, 400, "is not a session"),
        ({"name": "x", "token": True, "sessions": ["a/b"]}, 400, "is not a session"),
        ({"name": "x", "token": True, "sessions": [f"s{n}" for n in range(257)]}, 400, "at most 256 sessions"),
        ({"name": "x", "token": True, "repos": ["acme/nowhere"]}, 404, "acme/nowhere is not registered"),
        ({"name": "x", "address": "127.0.0"}, 400, "is not an IP address"),
        ({"name": "x", "address": "10.0.0.0/8"}, 400, "is not an IP address"),
        ({"name": "x", "unix": "v.sock"}, 400, "in none of the directories"),
        ({"name": "x", "unix": "/etc/v.sock"}, 400, "in none of the directories"),
        ({"name": "x", "unix": "{}/../../etc/v.sock"}, 400, "in none of the directories"),
        ({"name": "x", "unix": "{}/none/v.sock"}, 422, "No such file or directory"),
        ({"name": "x", "unix": "{}/a/./v.sock"}, 400, "empty parts, . or .."),
        ({"name": "x", "unix": "{}/v\0.sock"}, 400, ""),
        ({"name": "x", "unix": "{}/taken"}, 422, ""),
        ({"name": "x", "unix": "{}/" + "n" * 300}, 422, ""),
        ({"name": "x", "token": True, "ttl": 0}, 400, ""),
        ({"name": "x", "token": True, "guest": "y"}, 400, ""),
    ],
)
def test_an_order_that_cannot_be_is_refused(node: KnownNode, order: dict[str, Any], status: int, words: str) -> None:
    """With what is wrong; nobody is known by it afterwards, and no file is left."""
    (node.sockets / "taken_9419").touch()
    before = {path.name for path in node.sockets.iterdir()}
    if "unix" in order:
        order = order | {"unix": order["unix"].replace("{}", str(node.sockets))}
    answer = node.serve.cli("api", "POST", "/v1/guests", "--input", "-", input=json.dumps(order), check=False)
    document = json.loads(answer.stdout)
    assert document["status"] == status and words.lower() in document["detail"].lower(), document
    with pytest.raises(GitmirrorError, match="there is no known guest"):
        api(node.serve, "GET", "/v1/guests/x")
    assert {path.name for path in node.sockets.iterdir()} == before


def test_a_link_leads_to_no_other_directory(node: KnownNode, tmp_path: Path) -> None:
    """Out of those that may hold sockets."""
    (node.sockets / "out").symlink_to(tmp_path)
    with pytest.raises(GitmirrorError, match="in none of the directories"):
        node.add("vm-link", unix=f"{node.sockets}/out/v.sock")
    (node.sockets / "out").unlink()
    assert not list(tmp_path.glob("v.sock*"))


def test_a_way_is_that_of_one_guest(node: KnownNode) -> None:
    """Two that come by the same address or socket could not be told apart."""
    node.add("vm-one", address="127.2.0.1")
    node.add("vm-two", sessions=["x"])
    for order in ({"address": "127.2.0.1"}, {"unix": node.path("vm-two")}):
        with pytest.raises(GitmirrorError, match="is that of the guest vm-"):
            node.add("vm-three", **order)
    for name in ("vm-one", "vm-two"):
        node.remove(name)


def test_a_removed_guest_is_cut_off_and_its_name_is_another(node: KnownNode) -> None:
    """Its connections end, its token is worth nothing, and who is added under its name is not it."""
    token = node.add("vm-gone", sessions=["gone"], repos=[SECRET], unix=node.path("vm-gone"), token=True)["token"]
    url = f"{node.serve.http_url}/{SECRET}/freshness"
    assert get(url, authorization=f"Bearer {token}").status == 200
    with by_unix(f"{node.path('vm-gone')}_9418")() as idle:
        idle.settimeout(10)
        road = node.by_socket("vm-gone")
        assert ls_remote(road.url("git", SECRET))[0] == 0
        node.remove("vm-gone")
        assert idle.recv(1) == b"", "its connection has ended"
    assert not list(node.sockets.glob("vm-gone*"))
    assert get(url, authorization=f"Bearer {token}").status == 404
    new = node.add("vm-gone", sessions=["other"], unix=node.path("vm-gone"), token=True)["token"]
    assert new != token
    assert get(url, authorization=f"Bearer {token}").status == 404
    assert get(url, authorization=f"Bearer {new}").status == 404
    answer = raw_push(*node.by_socket("vm-gone").git.address, f"/{WIDGETS}", [(ZERO, node.tip, "refs/agents/gone")])
    assert not answer.accepted and "refs/agents/other" in answer.messages
    node.remove("vm-gone")


@pytest.mark.slow
def test_time_ends_a_guest_by_itself(node: KnownNode) -> None:
    """As `guest remove` does; its name and its way are free at once."""
    node.add("vm-brief", repos=[SECRET], ttl=5, address="127.3.0.1")
    road = node.by_address("127.3.0.1")
    assert ls_remote(road.url("git", SECRET))[0] == 0
    wait_until(lambda: ls_remote(road.url("git", SECRET))[0] != 0, timeout=60, message="it is unknown")
    assert "vm-brief" not in {each["name"] for each in api(node.serve, "GET", "/v1/guests")["items"]}
    node.add("vm-brief", address="127.3.0.1")
    node.remove("vm-brief")


def test_a_repository_that_comes_back_is_another(own_known_node: KnownNode) -> None:
    """What a guest may read is a registration, not a name."""
    node = own_known_node
    url = node.upstream.url("acme/again")
    node.upstream.add("acme/again", node.upstream.path(WIDGETS))
    api(node.serve, "POST", "/v1/repos", {"url": url})
    node.add("vm-7", repos=["acme/again"], only=True)
    road = node.by_socket("vm-7")
    assert ls_remote(road.url("git", "acme/again"))[0] == 0
    api(node.serve, "DELETE", "/v1/repos/acme/again")
    api(node.serve, "POST", "/v1/repos", {"url": url})
    for protocol in ("git", "http"):
        assert ls_remote(road.url(protocol, "acme/again"))[0] != 0


def test_writers_takes_effect_with_a_reload(own_known_node: KnownNode) -> None:
    """The next push of who is not known is refused; the known ones go on."""
    node = own_known_node
    node.add("vm-7", sessions=["fix-dns"])
    address = f"/{WIDGETS}"

    def push(session: str) -> bool:
        return raw_push(*node.serve.git_address, address, [(ZERO, node.tip, f"refs/agents/{session}")]).accepted

    assert push("before")
    text = node.serve.config.read_text()
    node.serve.config.write_text(text.replace('writers = "anyone"', 'writers = "guests"'))
    node.serve.reload()
    wait_until(lambda: not push("after"), timeout=60, message="a stranger is refused")
    road = node.by_socket("vm-7")
    assert raw_push(*road.git.address, address, [(ZERO, node.tip, "refs/agents/fix-dns")]).accepted


# Without a `serve`


@pytest.mark.slow
def test_without_a_serve_the_database_knows(alone: Serve, tmp_path: Path) -> None:
    """The same commands and answers; the guest is known from the next start."""
    unix = str(tmp_path / "v.sock")
    order = ["guest", "add", "vm-7", "--session", "fix-dns", "--unix", unix]
    added = alone.cli_json(*order)
    assert added == {**alone.cli_json("guests")[0], "token": None, "shared": {}}
    assert alone.cli_json(*order) == added
    with pytest.raises(CommandFailed, match="is known already"):
        alone.here("guest", "add", "vm-7", "--unix", unix)
    with alone.start():
        by_unix(f"{unix}_9418")().close()
    assert [each["name"] for each in alone.cli_json("guests")] == ["vm-7"]
    alone.here("guest", "remove", "vm-7")
    assert json.loads(alone.here("guests", "--json")) == []


def test_without_a_serve_only_its_own_files_are_removed(alone: Serve, tmp_path: Path) -> None:
    """Of what a killed `serve` left: a file that another program put in its place stays."""
    store = open_stores(Layout(alone.state)).guests
    guest, _ = store.add(GuestOrder("vm-7", unix=str(tmp_path / "v.sock")))
    paths = [tmp_path / "v.sock_9418", tmp_path / "v.sock_9419", tmp_path / "plain"]
    held = [bound(path) for path in paths[:2]]
    paths[2].touch()
    identities = {str(path): socket_identity(str(path)) or "" for path in paths[:2]}
    store.note_sockets({guest.id: {**identities, str(paths[2]): "1:2:3"}})
    paths[1].unlink()
    held.append(bound(paths[1]))
    alone.here("guest", "remove", "vm-7")
    assert [path.exists() for path in paths] == [False, True, True]
    for sock in held:
        sock.close()


def bound(path: Path) -> socket.socket:
    """A socket at a path."""
    made = socket.socket(socket.AF_UNIX)
    with short_name(path) as name:
        made.bind(name)
    return made


@pytest.mark.slow
def test_ten_thousand_guests_are_listed_in_pages(alone: Serve) -> None:
    """Each once, in order of name."""
    stores = open_stores(Layout(alone.state))
    with stores.database.writing() as connection:
        connection.table("guests").insert_all(
            {"name": f"vm-{number:05}", "only": 0, "address": f"fd00::{number:x}", "created_at": 1.0}
            for number in range(10_000)
        )
    with alone.start():
        first = api(alone, "GET", "/v1/guests?limit=1000")
        assert (len(first["items"]), first["next"]) == (1000, "vm-00999")
        last = api(alone, "GET", "/v1/guests?limit=1000&after=vm-08999")
        assert ([each["name"] for each in last["items"]][-1], last["next"]) == ("vm-09999", None)
        assert f"\ngitmirror_known_guests {10_000:.1f}\n" in get(f"{alone.admin_url}/metrics").text


def test_a_conflict_is_one(node: KnownNode) -> None:
    """409, and exit code 2."""
    node.add("vm-twice", address="127.4.0.1")
    with pytest.raises(GitmirrorError) as caught:
        node.add("vm-twice", address="127.4.0.2")
    assert caught.value.exit_code == Conflict("x").exit_code
    node.remove("vm-twice")
