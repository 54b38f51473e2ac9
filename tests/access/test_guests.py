"""Without a read token, a guest learns nothing about a private mirror; with one, it can read and record."""

from __future__ import annotations

import base64
import http.client
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from appliance.core.layout import Layout
from appliance.core.node.state_dir import open_stores
from tests.access.conftest import NOWHERE, OTHER, SECRET, Node, bearer, raw_http, tip
from tests.conftest import WIDGETS
from tests.support.gitutil import clean_env, commit_files, git, git_result, wait_until
from tests.support.pkt import FLUSH, daemon_request, pkt, read_pkt
from tests.workspace.web import get

COMMANDS = pkt("command=ls-refs\n") + FLUSH
POST = "Content-Type: application/x-git-{service}-request\r\nContent-Length: {size}\r\n"
ROUTES = [
    *[("GET", "/info/refs?service=git-upload-pack", f"Git-Protocol: version={version}\r\n", b"") for version in "012"],
    ("GET", "/info/refs?service=git-receive-pack", "", b""),
    ("GET", "/info/refs", "", b""),
    ("POST", "/git-upload-pack", POST.format(service="upload-pack", size=len(COMMANDS)), COMMANDS),
    ("POST", "/git-receive-pack", POST.format(service="receive-pack", size=len(FLUSH)), FLUSH),
    ("GET", "/workspace.tar", "", b""),
    ("HEAD", "/workspace.tar?ref=main", "", b""),
    ("GET", "/freshness", "", b""),
    ("GET", f"/freshness?want={'1' * 40}", "", b""),
    ("GET", "/HEAD", "", b""),
    ("GET", "", "", b""),
    ("PUT", "/workspace.tar", "Content-Length: 0\r\n", b""),
]


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture(scope="module")
def credentials(node: Node) -> list[str]:
    """What a guest may send that is not allowed to read `SECRET`."""
    revoked, of_other = node.issue(), node.issue(OTHER)["token"]
    node.serve.cli("token", "revoke", str(revoked["id"]))
    return [
        "",
        "Bearer ",
        "Basic %%%",
        "Bearer " + "gmt_" + "A" * 43,
        "Bearer " + of_other,
        basic("x", of_other),
        basic("x", revoked["token"]),
        "Digest " + of_other,
    ]


@pytest.mark.parametrize(
    "place", ["/{}", "/{}.git", "/127.0.0.1:{port}/{}", "/127.0.0.1:{port}/{}.git", "/127.0.0.1/{}"]
)
def test_every_route_answers_as_for_what_is_not_registered(node: Node, credentials: list[str], place: str) -> None:
    """Byte by byte, in every path form, with no token, a wrong one, one of another repository, and one that ended."""
    for method, route, headers, body in ROUTES:
        for authorization in credentials:
            sent = f"Authorization: {authorization}\r\n" if authorization else ""
            told = []
            for name in (SECRET, NOWHERE):
                path = place.format(name, port=node.upstream.port)
                head = f"{method} {path}{route} HTTP/1.1\r\nHost: mirror\r\nConnection: close\r\n{headers}{sent}\r\n"
                told.append(raw_http(node.serve, head.encode() + body).replace(name.encode(), b"NAME"))
            assert told[0] == told[1], (method, route, authorization)
            assert b" 200 " not in told[0].splitlines()[0]


def test_with_the_token_each_of_these_routes_answers(node: Node) -> None:
    """As a bearer token and as any user's password, in every path form. So the routes refused above exist."""
    token = node.issue()["token"]
    for authorization in (f"Bearer {token}", f"bearer  {token}", basic("anybody", token), basic("", token)):
        for path in (SECRET, f"{SECRET}.git", f"127.0.0.1:{node.upstream.port}/{SECRET}"):
            for route in ("info/refs?service=git-upload-pack", "info/refs?service=git-receive-pack", "freshness"):
                answer = get(f"{node.serve.http_url}/{path}/{route}", authorization=authorization)
                assert answer.status == 200, (authorization, path, route)
    assert get(f"{node.serve.http_url}/{WIDGETS}/freshness", authorization=f"Bearer {token}").status == 200


@pytest.mark.parametrize("service", ["git-upload-pack", "git-receive-pack"])
def test_git_never_serves_it(node: Node, service: str) -> None:
    """git:// carries no token: ERR in the same words, in every version and path form."""
    for place in ("/{}", "/{}.git", "/127.0.0.1/{}"):
        for version in ([], ["version=1"], ["version=2"]):
            told = []
            for name in (SECRET, NOWHERE):
                with daemon_request(*node.serve.git_address, service, place.format(name), version) as sock:
                    told.append((read_pkt(sock) or b"").replace(name.encode(), b"NAME"))
            assert told[0] == told[1] and told[0].startswith(b"ERR ") and b"not mirrored here" in told[0]


def test_nothing_that_a_guest_can_read_names_it(node: Node) -> None:
    """Neither the guest kit, which names the public repositories, nor the health routes name it."""
    kit = get(f"{node.serve.http_url}/guest.sh").text
    assert WIDGETS in kit and SECRET not in kit and OTHER not in kit
    assert node.serve.cli("guest-kit").stdout == kit
    for route in ("/healthz", "/", "/metrics", "/readyz"):
        assert SECRET not in get(f"{node.serve.http_url}{route}").text


@pytest.mark.slow
def test_a_clone_and_a_recording_with_a_token(node: Node, tmp_path: Path) -> None:
    """By plain git, the token in its environment: clone, blobless clone, push to refs/agents; without it nothing."""
    url, token = f"{node.serve.http_url}/{SECRET}", node.issue()["token"]
    env = bearer(token, url)
    git("clone", "--quiet", url, str(tmp_path / "full"), env=env)
    assert git("rev-parse", "HEAD", cwd=tmp_path / "full") == tip(node.upstream, SECRET)
    git("clone", "--quiet", "--filter=blob:none", "--depth=1", url, str(tmp_path / "partial"), env=env)
    for version in ("0", "1"):
        assert git("-c", f"protocol.version={version}", "ls-remote", url, "HEAD", env=env)
    commit = commit_files(tmp_path / "full", {"x": "1\n"}, "a turn")
    code, _, said = git_result("push", url, "HEAD:refs/agents/s1", cwd=tmp_path / "full")
    assert code and "not found" in said
    git("push", "--quiet", url, "HEAD:refs/agents/s1", cwd=tmp_path / "full", env=env)
    assert git("rev-parse", "refs/agents/s1", cwd=node.serve.mirror(SECRET)) == commit
    code, _, said = git_result("push", url, "HEAD:refs/heads/main", cwd=tmp_path / "full", env=env)
    assert code and "refs/agents" in said
    assert token not in (tmp_path / "full" / ".git" / "config").read_text()
    assert [row["session"] for row in node.serve.cli_json("sessions", "--repo", SECRET)] == ["s1"]


@pytest.mark.slow
def test_a_token_ends_with_the_very_next_request(node: Node) -> None:
    """When another process revokes it during a kept connection, or when it expires. `token list` shows both."""
    url = f"{node.serve.http_url}/{SECRET}"
    issued, short = node.issue(), node.issue(ttl="1s")
    kept = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)

    def ask() -> int:
        kept.request("GET", f"/{SECRET}/freshness", headers={"Authorization": f"Bearer {issued['token']}"})
        answer = kept.getresponse()
        answer.read()
        return answer.status

    assert node.ls_remote(url, issued["token"])[0] == 0
    assert ask() == 200
    with ThreadPoolExecutor(1) as beside:
        revoking = beside.submit(node.serve.cli, "token", "revoke", str(issued["id"]))
        # An idle connection is kept for three seconds only.
        while not revoking.done():
            ask()
            time.sleep(0.1)
        revoking.result()
    assert ask() == 404
    kept.close()
    code, said = node.ls_remote(url, issued["token"])
    assert code and "not found" in said
    wait_until(
        lambda: get(f"{url}/freshness", authorization=f"Bearer {short['token']}").status == 404,
        message="the short token is over",
    )
    rows = {row["id"]: row for row in node.serve.cli_json("token", "list", "--repo", SECRET)}
    assert rows[issued["id"]]["state"] == "revoked" and rows[short["id"]]["state"] == "expired"
    assert rows[issued["id"]]["revoked_at"] and not rows[short["id"]]["revoked_at"]
    assert "token" not in rows[issued["id"]]
    unknown = node.serve.cli("token", "revoke", "999999", check=False)
    assert unknown.returncode == 1 and "999999" in unknown.stderr
    for words in (["--repo", "no/such"], ["--repo", SECRET, "--ttl", "99999d"]):
        refused = node.serve.cli("token", "issue", *words, check=False)
        assert (refused.returncode, refused.stdout) == (2, "") and "hint:" in refused.stderr


@pytest.mark.slow
def test_the_database_holds_hashes_and_the_last_use(node: Node) -> None:
    """The token is printed once; its last use is written behind."""
    issued = node.issue()
    assert node.ls_remote(f"{node.serve.http_url}/{SECRET}", issued["token"])[0] == 0

    stores = open_stores(Layout(node.serve.state), create=False)

    def last_used(rows: list[dict[str, Any]]) -> str | None:
        found: str | None = next(row["last_used_at"] for row in rows if row["id"] == issued["id"])
        return found

    try:
        # The database itself, because a command asked again and again would keep a processor busy.
        wait_until(lambda: last_used(stores.tokens.all()), message="the use is written", timeout=60)
    finally:
        stores.database.close()
    assert last_used(node.serve.cli_json("token", "list"))
    for path in node.serve.state.glob("gitmirror.db*"):
        assert issued["token"].encode() not in path.read_bytes()
    assert issued["token"] not in node.serve.log()


def test_repos_and_status_say_who_reads(node: Node) -> None:
    """`private` and `readers`, with and without serve."""
    for command in ("repos", "status"):
        found = node.serve.cli_json(command)
        listed = found if command == "repos" else found["repos"]
        rows = {row["name"]: (row["private"], row["readers"]) for row in listed}
        assert rows == {SECRET: (True, "token"), OTHER: (True, "token"), WIDGETS: (False, None)}


def test_a_database_that_cannot_be_read_tells_nothing_either(node: Node) -> None:
    """If a token cannot be looked up, the response is 503 for every path; without a token, nothing changes."""
    token = node.issue()["token"]
    for path in node.serve.state.glob("gitmirror.db*"):
        path.rename(path.with_suffix(path.suffix + ".away"))
    try:
        told = {
            (get(f"{node.serve.http_url}/{name}/freshness", authorization=f"Bearer {token}").status, name)
            for name in (SECRET, NOWHERE)
        }
        assert told == {(503, SECRET), (503, NOWHERE)}
        assert get(f"{node.serve.http_url}/{SECRET}/freshness").status == 404
        assert get(f"{node.serve.http_url}/{WIDGETS}/freshness").status == 200
    finally:
        for path in node.serve.state.glob("*.away"):
            path.rename(path.with_suffix(""))
    assert get(f"{node.serve.http_url}/{SECRET}/freshness", authorization=f"Bearer {token}").status == 200


@pytest.mark.slow
def test_a_token_dies_with_the_registration(node: Node, tmp_path: Path) -> None:
    """A repository that was removed and added again, its mirror still on disk, has none of its old tokens."""
    name = "acme/removed"
    node.upstream.add(name, node.upstream.path(WIDGETS))
    serve, url = node.serve, f"{node.serve.http_url}/{name}"
    serve.cli("add-repo", node.upstream.url(name))
    issued = node.issue(name)
    serve.cli("remove-repo", name)
    [row] = serve.cli_json("token", "list", "--repo", name)
    assert row["state"] == "revoked"
    serve.cli("add-repo", node.upstream.url(name))
    with sqlite3.connect(serve.state / "gitmirror.db") as database:
        ids = database.execute("SELECT repo_id FROM read_tokens WHERE repo = ?", [name]).fetchall()
        [now] = database.execute("SELECT id FROM repos WHERE name = ?", [name]).fetchall()
    assert ids != [now]
    assert issued["private"] is False and node.ls_remote(url)[0] == 0
    serve.cli("remove-repo", name, "--purge", "--yes")


def test_a_guest_that_asks_the_wrong_way_is_told_nothing(node: Node) -> None:
    """git sends a user and password from the URL only after a 401, and it never gets one."""
    token = node.issue()["token"]
    code, _, said = git_result(
        "ls-remote",
        node.serve.http_url.replace("://", f"://x:{token}@") + f"/{SECRET}",
        env=clean_env(Path("/nonexistent")),
    )
    assert code and "not found" in said
