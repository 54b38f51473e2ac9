"""Guests get LFS objects from the node: with git-lfs, by hand, with tokens, and never through the wrong repository."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.access.conftest import NOWHERE, SECRET
from tests.conftest import WIDGETS
from tests.lfs.node import DATA, ELSEWHERE, HIDDEN, LfsNode, contents, lfs_node, needs_git_lfs, run_git
from tests.serving.fetch.test_transfers import half_read, transfers_of
from tests.support.gitutil import git, wait_until
from tests.support.lfs_server import MEDIA

OIDS = {name: hashlib.sha256(data).hexdigest() for name, data in DATA.items()}
ONE = (OIDS["one.bin"], len(DATA["one.bin"]))
HIDDEN_OID = (hashlib.sha256(HIDDEN).hexdigest(), len(HIDDEN))


@pytest.fixture(scope="module")
def module_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LfsNode]:
    """The node of all tests of this module."""
    with lfs_node(tmp_path_factory.mktemp("node"), serve={"max_clients": 4}) as made:
        yield made


@pytest.fixture
def node(module_node: LfsNode) -> LfsNode:
    """The same, with an upstream that does nothing wrong."""
    module_node.lfs.reset()
    return module_node


@pytest.mark.slow
def test_a_guest_with_git_lfs(node: LfsNode) -> None:
    """A clone over HTTP by each path has the files, from the upstream once; over git:// with lfs.url."""
    needs_git_lfs()
    env, host = node.guest("guest"), f"127.0.0.1:{node.lfs.port}"
    for number, path in enumerate((WIDGETS, f"{WIDGETS}.git", f"{host}/{WIDGETS}")):
        work = node.place / f"clone{number}"
        code, said = run_git("clone", "--quiet", f"{node.serve.http_url}/{path}", str(work), env=env)
        assert code == 0, said
        assert contents(work) == DATA and run_git("status", "--short", env=env, cwd=work) == (0, "")
    assert node.lfs.count("object") <= len(DATA)
    work = node.place / "by-git"
    env = node.guest("other", GIT_LFS_SKIP_SMUDGE="1")
    git("clone", "--quiet", f"{node.serve.git_url}/{WIDGETS}", str(work), env=env)
    git("config", "lfs.url", f"{node.serve.http_url}/{WIDGETS}/info/lfs", cwd=work, env=env)
    git("lfs", "pull", cwd=work, env=env)
    assert contents(work) == DATA


@pytest.mark.slow
def test_a_private_repository_with_a_token(node: LfsNode) -> None:
    """git-lfs sends the header for the batch and for the objects; without it there is nothing."""
    needs_git_lfs()
    token = node.token(SECRET)
    header = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"http.{node.serve.http_url}/.extraHeader"}
    env = node.guest("reader", **header, GIT_CONFIG_VALUE_0=f"Authorization: Bearer {token}")
    work = node.place / "secret"
    code, said = run_git("clone", "--quiet", f"{node.serve.http_url}/{SECRET}", str(work), env=env)
    assert code == 0, said
    assert contents(work) == {"hidden.bin": HIDDEN}
    for authorization in (f"Bearer {token}", f"Basic {base64.b64encode(f'x:{token}'.encode()).decode()}"):
        _, found = node.batch(f"/{SECRET}", HIDDEN_OID, Authorization=authorization)
        action = found["objects"][0]["actions"]["download"]
        assert action["header"] == {"Authorization": authorization}
        target = urlsplit(action["href"])
        assert node.ask("GET", f"{target.path}?{target.query}", headers=action["header"])[2] == HIDDEN
        assert node.ask("GET", f"{target.path}?{target.query}")[0] == 404


def test_strangers_learn_nothing_of_a_private_repository(node: LfsNode) -> None:
    """The answer is the one for a repository that nobody registered, byte for byte."""
    for method, rest, body in (
        ("POST", "objects/batch", {"operation": "download", "objects": [{"oid": HIDDEN_OID[0], "size": 3}]}),
        ("GET", f"objects/{HIDDEN_OID[0]}?size={HIDDEN_OID[1]}", None),
        ("POST", "locks/verify", {}),
        ("GET", "locks", None),
    ):
        answers = []
        for name in (SECRET, NOWHERE):
            status, headers, data = node.ask(method, f"/{name}/info/lfs/{rest}", body)
            answers.append((status, headers | {"date": ""}, data.replace(name.encode(), b"NAME")))
        assert answers[0] == answers[1] and answers[0][0] == 404 and answers[0][1]["content-type"] == MEDIA


def test_an_object_of_a_private_repository_through_an_open_one(node: LfsNode) -> None:
    """Not even when it is here."""
    token = node.token(SECRET)
    path = f"objects/{HIDDEN_OID[0]}?size={HIDDEN_OID[1]}"
    mine = node.ask("GET", f"/{SECRET}/info/lfs/{path}", headers={"Authorization": f"Bearer {token}"})
    assert mine[0] == 200 and mine[2] == HIDDEN
    _, found = node.batch(f"/{WIDGETS}", HIDDEN_OID)
    assert found["objects"][0]["error"]["code"] == 404 and "actions" not in found["objects"][0]
    for end in ("", f"?size={HIDDEN_OID[1]}"):
        assert node.ask("GET", f"/{WIDGETS}/info/lfs/objects/{HIDDEN_OID[0]}{end}")[0] == 404
    for trick in ("..%2f..%2fsecret", f"{HIDDEN_OID[0][:2]}%2f{HIDDEN_OID[0]}", "%2e%2e", "x", HIDDEN_OID[0].upper()):
        assert node.ask("GET", f"/{WIDGETS}/info/lfs/objects/{trick}")[0] in (404, 422)


def test_the_href_is_an_address_by_which_the_guest_came(node: LfsNode) -> None:
    """Its Host header, if that is one, and the path that it used."""
    for path in (f"/{WIDGETS}", f"/{WIDGETS}.git", f"/127.0.0.1:{node.lfs.port}/{WIDGETS}.git"):
        for host in ("mirror.example:9419", "[::1]:80", "10.0.0.1"):
            _, found = node.batch(path, ONE, Host=host)
            href = found["objects"][0]["actions"]["download"]["href"]
            assert href == f"http://{host}{path}/info/lfs/objects/{ONE[0]}?size={ONE[1]}"
        _, found = node.batch(path, ONE, Host='x"y')
        assert found["objects"][0]["actions"]["download"]["href"].startswith(node.serve.http_url)


def test_a_range_of_an_object(node: LfsNode) -> None:
    """As git-lfs asks for the rest of an object."""
    path = f"/{WIDGETS}/info/lfs/objects/{ONE[0]}?size={ONE[1]}"
    assert node.ask("GET", path)[2] == DATA["one.bin"]
    status, headers, data = node.ask("GET", path, headers={"Range": "bytes=1000-"})
    assert status == 206 and data == DATA["one.bin"][1000:]
    assert headers["content-range"] == f"bytes 1000-{ONE[1] - 1}/{ONE[1]}"
    assert node.ask("HEAD", path)[1]["content-length"] == str(ONE[1])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"operation": "upload", "objects": []}, 403),
        ({"operation": "steal", "objects": []}, 422),
        ({"operation": "download", "objects": []}, 200),
        ({"operation": "download"}, 422),
        ({"operation": "download", "hash_algo": "md5", "objects": []}, 409),
        ({"operation": "download", "objects": [{"oid": 3, "size": 1}]}, 422),
        ({"operation": "download", "objects": [{"oid": "x", "size": -1}]}, 422),
        ({"operation": "download", "objects": [{"oid": "x", "size": True}]}, 422),
        ({"operation": "download", "objects": ["x"]}, 422),
        ({"operation": "download", "objects": [{"oid": f"{n:064x}", "size": 1} for n in range(1001)]}, 413),
        ([], 400),
        (b"[" * 100_000, 400),
        (b"\xff", 400),
        (b" " * (2**20 + 1), 413),
    ],
)
def test_a_batch_that_is_refused(node: LfsNode, body: object, status: int) -> None:
    """With the status of the LFS API, and a message."""
    found, headers, data = node.ask("POST", f"/{WIDGETS}/info/lfs/objects/batch", body)
    assert found == status and headers["content-type"] == MEDIA
    assert status == 200 or json.loads(data)["message"]
    if status == 403:
        assert node.lfs.url(WIDGETS) in json.loads(data)["message"]


def test_one_bad_object_of_a_batch(node: LfsNode) -> None:
    """Has an error of its own."""
    _, found = node.batch(f"/{WIDGETS}", ONE, ("../" * 20, 3), ("0" * 64, 10**18), ("0" * 64, 1))
    codes = {(each["oid"][:3], each["size"]): each.get("error", {}).get("code") for each in found["objects"]}
    assert codes == {(ONE[0][:3], ONE[1]): None, ("../", 3): 422, ("000", 10**18): 422, ("000", 1): 404}


def test_locks_are_not_there(node: LfsNode) -> None:
    """501, after which git-lfs goes on quietly."""
    for method, path in (("POST", "locks/verify"), ("GET", "locks"), ("POST", "locks"), ("POST", "locks/1/unlock")):
        assert node.ask(method, f"/{WIDGETS}/info/lfs/{path}")[0] == 501
    assert node.ask("GET", f"/{WIDGETS}/info/lfs/objects/batch")[0] == 405


def test_what_lfsconfig_names(node: LfsNode) -> None:
    """Its objects come from there."""
    path = f"/{ELSEWHERE}/info/lfs/objects/{HIDDEN_OID[0]}?size={HIDDEN_OID[1]}"
    assert node.ask("GET", path)[2] == HIDDEN
    assert any("/objects-of/elsewhere/info/lfs/" in each.path for each in node.lfs.requests)


def test_a_repository_that_is_not_mirrored_is_at_its_upstream(node: LfsNode) -> None:
    """As for fetches: below a host that is known."""
    host = f"127.0.0.1:{node.lfs.port}"
    status, headers, _ = node.ask("POST", f"/{host}/acme/unknown.git/info/lfs/objects/batch", {})
    assert (status, headers["location"]) == (307, f"http://{host}/acme/unknown.git/info/lfs/objects/batch")
    assert node.ask("POST", "/example.org/acme/unknown.git/info/lfs/objects/batch", {})[0] == 404


@pytest.mark.slow
def test_guests_that_wait_for_an_upstream_hold_no_slot(node: LfsNode) -> None:
    """Thirty wait for it where four may be served at once, and others clone and fetch objects meanwhile."""
    node.ask("GET", f"/{WIDGETS}/info/lfs/objects/{ONE[0]}?size={ONE[1]}")
    node.lfs.faults.hang_objects = node.lfs.faults.hang_batch = True
    answers: list[int] = []

    def wait(number: int) -> None:
        answers.append(node.ask("GET", f"/{WIDGETS}/info/lfs/objects/{number:064x}?size=5")[0])

    waiting = [threading.Thread(target=wait, args=(number,)) for number in range(30)]
    for thread in waiting:
        thread.start()
    began = time.monotonic()
    node.serve.clone(node.place / "meanwhile", WIDGETS, "--depth=1", http=True)
    assert node.ask("GET", f"/{WIDGETS}/info/lfs/objects/{ONE[0]}?size={ONE[1]}")[2] == DATA["one.bin"]
    assert time.monotonic() - began < 15 and not answers
    node.lfs.reset()
    for thread in waiting:
        thread.join(60)
    assert set(answers) <= {404, 503}


@pytest.mark.slow
def test_objects_are_among_what_guests_are_sent(node: LfsNode) -> None:
    """While they come from the upstream, and from the store; a guest that hangs up is gone from the list."""
    data = bytes(range(256)) * 40_000
    oid = hashlib.sha256(data).hexdigest()
    node.lfs.add(WIDGETS, data)
    path = f"/{WIDGETS}/info/lfs/objects/{oid}?size={len(data)}"
    facts = {"repo": WIDGETS, "want": oid, "shape": "LFS file", "size": len(data), "protocol": "http"}
    node.lfs.faults.slow = 4_000_000
    coming = threading.Thread(target=node.ask, args=("GET", path))
    coming.start()
    [running] = wait_until(lambda: transfers_of(node.serve), message="it is listed")
    assert facts.items() <= running.items() and running["way"] == "miss"
    wait_until(lambda: 0 < transfers_of(node.serve)[0]["bytes"] < len(data), message="its bytes are counted")
    node.lfs.reset()
    coming.join()
    address = urlsplit(node.serve.http_url)
    request = f"GET {path} HTTP/1.1\r\nHost: mirror\r\n\r\n".encode()
    with half_read((address.hostname or "", address.port or 0), request):
        [running] = wait_until(lambda: transfers_of(node.serve), message="it is listed")
        assert facts.items() <= running.items() and running["way"] == "hit"
    wait_until(lambda: not transfers_of(node.serve), timeout=60, message="it is gone from the list")


def test_metrics_count_objects(node: LfsNode) -> None:
    """Hits, misses and bytes."""
    node.ask("GET", f"/{WIDGETS}/info/lfs/objects/{ONE[0]}?size={ONE[1]}")
    node.ask("GET", f"/{WIDGETS}/info/lfs/objects/{ONE[0]}?size={ONE[1]}")
    with urllib.request.urlopen(f"{node.serve.admin_url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("gitmirror_lfs_"))
    assert float(figures["gitmirror_lfs_hits"]) >= 1 and float(figures["gitmirror_lfs_bytes"]) >= ONE[1]
