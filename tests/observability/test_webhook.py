"""`POST /hooks/github` and `POST /OWNER/REPO/refresh`: access, what is trusted, and that the commit arrives."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.conftest import WIDGETS
from tests.observability.conftest import ODD, SECRET, TOKEN, Hooked, signature, status_of
from tests.serving.fetch.wire import HttpGuest, chunked, http_ask
from tests.support.generate import add_commit, delete_branch
from tests.support.gitutil import git, remote_refs, wait_until

ZEROS = "0" * 40


def test_a_pushed_commit_is_here_and_warm_in_a_moment(hooked: Hooked) -> None:
    """From the webhook until guests see the commit and every usual response for it is cached."""
    before = git("rev-parse", "refs/heads/main", cwd=hooked.upstream.path(WIDGETS))
    tip = add_commit(hooked.upstream.path(WIDGETS), "main", {"hooked": "1\n"})
    start = time.monotonic()
    reply = hooked.hook(ref="refs/heads/main", before=before, after=tip)
    answered = time.monotonic() - start
    assert (reply.status, json.loads(reply.body)) == (202, {"accepted": [WIDGETS]})

    def look() -> bool:
        warmed = status_of(hooked.serve)["warmed"][WIDGETS]
        return bool(warmed["tip"] == tip and warmed["wanted"] and warmed["answers"] == warmed["wanted"])

    wait_until(look, timeout=60, message="it is here and warm")
    took = time.monotonic() - start
    assert remote_refs(f"{hooked.serve.git_url}/{WIDGETS}")["refs/heads/main"] == tip
    print(f"answered after {answered:.3f} s, here and warm after {took:.3f} s")


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "nonsense",
        "sha256=",
        f"sha1={'0' * 40}",
        signature(b"another body"),
        signature(b'{"repository": {}}', b"another secret"),
        signature(b'{"repository": {}}', SECRET + b"\n"),
    ],
)
def test_a_wrong_signature_is_refused_before_anything_is_read(hooked: Hooked, given: str | None) -> None:
    """401 whatever the body is, also when it is no JSON at all, and the upstream is not asked."""
    hooked.settle()
    before = hooked.asked()
    for body in (b'{"repository": {}}', b"\xff not JSON"):
        headers = {"X-GitHub-Event": "push"} | ({} if given is None else {"X-Hub-Signature-256": given})
        reply = http_ask(hooked.url, "POST", headers, body)
        assert reply.status == 401 and b"ignature" in reply.body
    assert hooked.asked() == before


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"repository": "acme/widgets"}',
        b'{"repository": [1]}',
        b"[" * 200_000,
        b'{"repository": {"full_name": "acme/widgets"}',
        b'{"a": 1e999999, "repository": 7}',
    ],
)
def test_signed_nonsense_is_refused_in_words(hooked: Hooked, body: bytes) -> None:
    """400, and the next one is answered as ever."""
    assert hooked.send(body).status == 400
    assert hooked.send(b"zen", "ping").status == 200
    assert "Traceback" not in hooked.serve.log()


@pytest.mark.parametrize(
    "facts",
    [
        {"ref": 7, "after": [1]},
        {"ref": "refs/heads/--upload-pack=x", "after": "a" * 40},
        {"ref": "refs/heads/a\nb", "after": "a" * 40},
        {"ref": "refs/heads/*", "after": "a" * 40},
        {"ref": "refs/agents/x", "after": "a" * 40},
        {"ref": "refs/heads/" + "x/" * 5000 + "x", "after": "a" * 40},
        {"ref": "refs/heads/main", "after": "not an id"},
        {"ref": "x", "ref_type": {"a": 1}},
    ],
)
def test_odd_refs_are_a_refresh_and_nothing_more(hooked: Hooked, facts: dict[str, Any]) -> None:
    """The announced refs are not looked for, and do no harm."""
    before = hooked.asked(ODD)
    for event in ("push", "create", "delete") if "ref_type" in facts else ("push",):
        assert hooked.hook(event, name=ODD, **facts).status == 202
    wait_until(lambda: hooked.asked(ODD) > before, message="it is refreshed")
    assert "Traceback" not in hooked.serve.log()


def test_bodies_come_in_pieces_as_forms_and_not_too_large(hooked: Hooked) -> None:
    """Chunked and with a length, JSON and `payload=`; past 25 MiB 413, before it is sent when its length tells."""
    body = json.dumps({"repository": {"full_name": WIDGETS}}).encode()
    form = urlencode({"payload": body.decode()}).encode()
    assert hooked.send(form, Content_Type="application/x-www-form-urlencoded").status == 202
    with HttpGuest(hooked.url) as guest:
        for _ in range(2):
            headers = {"Transfer-Encoding": "chunked", "X-Hub-Signature-256": signature(body)}
            guest.sock.sendall(guest.head("POST", "/hooks/github", headers) + chunked(body, 7))
            assert guest.read().status == 202
    with HttpGuest(hooked.url) as guest:
        headers = {"Content-Length": str(25 * 2**20 + 1), "X-Hub-Signature-256": "sha256=0", "Expect": "100-continue"}
        guest.sock.sendall(guest.head("POST", "/hooks/github", headers))
        assert guest.read().status == 413
    with HttpGuest(hooked.url) as guest:
        headers = {"Transfer-Encoding": "chunked", "X-Hub-Signature-256": "sha256=0"}
        guest.sock.sendall(guest.head("POST", "/hooks/github", headers))
        piece = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
        for _ in range(26):
            guest.sock.sendall(piece)
        assert guest.read().status == 413
    assert hooked.send(b"\x1f\x8b", Content_Encoding="gzip").status == 415
    assert http_ask(hooked.url).status == 405


def test_other_events_and_other_repositories(hooked: Hooked) -> None:
    """A ping is answered, what is not about refs is ignored, what is unknown or disabled is not mirrored here."""
    assert hooked.hook("ping").status == 200
    hooked.settle()
    before = hooked.asked(), hooked.asked("acme/off")
    assert json.loads(hooked.hook("issues").body) == {"ignored": "issues"}
    assert hooked.hook(name="acme/unheard-of").status == hooked.hook(name="acme/off").status == 404
    assert (hooked.asked(), hooked.asked("acme/off")) == before


@pytest.mark.slow
def test_a_burst_is_a_refresh_now_and_one_after(hooked: Hooked) -> None:
    """Two hundred webhooks while the upstream is slow to answer: two refreshes, and none is left waiting."""
    hooked.settle("acme/other")
    hooked.upstream.on("acme/other").hang = True
    before = hooked.asked("acme/other")
    tip = add_commit(hooked.upstream.path("acme/other"), "main", {"burst": "1\n"})
    with ThreadPoolExecutor(8) as guests:
        replies = list(guests.map(lambda _: hooked.hook(name="acme/other", ref="x").status, range(200)))
    assert replies == [202] * 200
    wait_until(lambda: hooked.upstream.hanging == 1, message="one refresh is under way")
    hooked.upstream.on("acme/other").hang = False
    hooked.serve.wait_for_ref("acme/other", "refs/heads/main", tip)
    [outcome] = hooked.serve.cli_json("refresh", "acme/other")
    assert outcome["result"] == "unchanged"
    # Each asks once; the one that fetched asks for refs again.
    assert hooked.asked("acme/other") - before <= 5


@pytest.mark.slow
def test_what_is_announced_before_it_is_served_is_looked_for_again(hooked: Hooked) -> None:
    """A commit, a new tag and a deletion that the upstream serves only some time after announcing them."""
    path = hooked.upstream.path(WIDGETS)
    old = git("rev-parse", "refs/heads/main", cwd=path)
    git("branch", "doomed", "main", cwd=path)
    hooked.serve.cli("refresh", WIDGETS)
    new = add_commit(path, "main", {"late": "1\n"})
    git("update-ref", "refs/heads/main", old, cwd=path)
    hooked.hook(ref="refs/heads/main", after=new)
    hooked.hook("create", ref="v-late", ref_type="tag")
    hooked.hook("delete", ref="doomed", ref_type="branch")
    hooked.hook(ref="refs/heads/doomed", after=ZEROS)
    hooked.settle()
    git("update-ref", "refs/heads/main", new, cwd=path)
    git("update-ref", "refs/tags/v-late", new, cwd=path)
    delete_branch(path, "doomed")
    hooked.serve.wait_for_ref(WIDGETS, "refs/heads/main", new)
    hooked.serve.wait_for_ref(WIDGETS, "refs/tags/v-late", new)
    hooked.serve.wait_for_ref(WIDGETS, "refs/heads/doomed", None)
    # Back to a commit that the mirror has all the while.
    hooked.hook(ref="refs/heads/main", before=new, after=old)
    hooked.settle()
    git("update-ref", "refs/heads/main", old, cwd=path)
    hooked.serve.wait_for_ref(WIDGETS, "refs/heads/main", old)


@pytest.mark.usefixtures("restored")
def test_the_secrets_file_is_read_again_and_its_loss_is_told(hooked: Hooked, restored: Callable[[], None]) -> None:
    """A new secret is valid at once. With no file or an empty one, no webhook is accepted, and `status` warns."""
    hooked.secret_file.write_bytes(b"a new one")
    assert hooked.send(b"zen", "ping").status == 401
    assert hooked.send(b"zen", "ping", X_Hub_Signature_256=signature(b"zen", b"a new one")).status == 200
    hooked.secret_file.write_bytes(b"\n")
    assert hooked.send(b"zen", "ping", X_Hub_Signature_256=signature(b"zen", b"")).status == 503
    hooked.secret_file.unlink()
    reply = hooked.send(b"zen", "ping")
    assert reply.status == 503 and str(hooked.secret_file).encode() not in reply.body
    [warning] = status_of(hooked.serve)["warnings"]
    assert str(hooked.secret_file) in warning and "cannot be read" in warning
    restored()
    assert hooked.send(b"zen", "ping").status == 200 and status_of(hooked.serve)["warnings"] == []


def test_a_refresh_can_be_asked_for_with_a_token(hooked: Hooked) -> None:
    """By platforms without webhooks: 202 at once, 401 without the token whatever the name, 404 for what is not here."""
    url = f"{hooked.serve.admin_url}/{WIDGETS}/refresh"
    for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        for each in (url, url.replace(WIDGETS, "acme/unheard-of")):
            reply = http_ask(each, "POST", given, b"")
            assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
    right = {"Authorization": f"Bearer {TOKEN}"}
    tip = add_commit(hooked.upstream.path(WIDGETS), "main", {"asked": "1\n"})
    reply = http_ask(url, "POST", right, b"")
    assert (reply.status, json.loads(reply.body)) == (202, {"accepted": WIDGETS})
    hooked.serve.wait_for_ref(WIDGETS, "refs/heads/main", tip)
    assert http_ask(url, "GET", right).status == 405
    for name in ("acme/unheard-of", "acme/off"):
        assert http_ask(url.replace(WIDGETS, name), "POST", right, b"").status == 404


def test_without_secret_and_token_there_is_nothing(hooked: Hooked) -> None:
    """Both routes return 404, like any unknown path. The guests' port has neither."""
    config = hooked.serve.config.read_text()
    hooked.serve.config.write_text(config.replace("webhook_secret_file", "#").replace("token_file", "#"))
    hooked.serve.reload()
    wait_until(lambda: hooked.send(b"zen", "ping").status == 404, message="the webhook is off")
    right = {"Authorization": f"Bearer {TOKEN}"}
    assert http_ask(f"{hooked.serve.admin_url}/{WIDGETS}/refresh", "POST", right, b"").status == 404
    hooked.serve.config.write_text(config)
    hooked.serve.reload()
    wait_until(lambda: hooked.send(b"zen", "ping").status == 200, message="it is on again")
    for path in ("/hooks/github", f"/{WIDGETS}/refresh"):
        assert http_ask(f"{hooked.serve.http_url}{path}", "POST", right, b"").status in (404, 405)
