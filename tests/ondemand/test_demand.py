"""Guests ask for what is allowed and not here yet."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import WIDGETS
from tests.ondemand.conftest import Allowing
from tests.support.gitutil import git, git_result, wait_until
from tests.support.pkt import pkt
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

UPLOAD_PACK = "git-upload-pack"


def sources(serve: Serve) -> dict[str, str]:
    """The registry: where each repository is from."""
    return {repo["name"]: repo["source"] for repo in serve.status()["repos"]}


def get(serve: Serve, path: str) -> tuple[int, dict[str, str], str]:
    """Asks the guests' HTTP port for a page."""
    connection = http.client.HTTPConnection(urlsplit(serve.http_url).netloc, timeout=60)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read().decode("latin-1")
    finally:
        connection.close()


def leaves_nothing(serve: Serve) -> bool:
    """Whether nothing of a refused wish is in the registry or on disk."""
    directories = [serve.state / "mirrors" / "acme", serve.state / "incoming" / "acme"]
    return sources(serve) == {} and not any(any(each.glob("*")) for each in directories if each.exists())


@pytest.mark.slow
def test_twenty_guests_ask_at_once(allowing: Allowing, upstream: HttpUpstream, tmp_path: Path) -> None:
    """Over git:// and HTTP, by both forms of a path: one clone, and all get a right workspace."""
    serve = allowing()
    host = urlsplit(upstream.url("")).netloc
    bases = [serve.git_url, serve.http_url, f"{serve.git_url}/{host}", f"{serve.http_url}/{host}"]
    tip = git("rev-parse", "HEAD", cwd=upstream.path(WIDGETS))
    upstream.on(WIDGETS).slow = 400_000

    def clone(number: int) -> str:
        work = tmp_path / f"work{number}"
        git("clone", "-q", f"{bases[number % 4]}/{WIDGETS}", str(work), timeout=120)
        assert git("status", "--porcelain", cwd=work) == ""
        return git("rev-parse", "HEAD", cwd=work)

    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(clone, range(20))) == {tip}
    assert sources(serve) == {WIDGETS: "allowed"}
    # Is it there, what are its refs, and one fetch, which asks for the refs and then for the pack.
    assert [request.method for request in upstream.requests] == ["GET", "POST", "GET", "POST", "GET", "POST", "POST"]
    [repo] = serve.cli_json("repos")
    assert (repo["source"], repo["url"], repo["interval"]) == ("allowed", upstream.url(WIDGETS), 3600.0)
    assert "allowed" in serve.cli("repos").stdout


@pytest.mark.slow
def test_tar_and_freshness_wait_too(allowing: Allowing, upstream: HttpUpstream) -> None:
    serve = allowing()
    status, _, body = get(serve, f"/{WIDGETS}/freshness")
    assert status == 200 and json.loads(body)["name"] == WIDGETS
    status, headers, _ = get(serve, f"/{WIDGETS}/workspace.tar")
    assert status == 200 and headers["x-gitmirror-commit"] == git("rev-parse", "HEAD", cwd=upstream.path(WIDGETS))


@pytest.mark.slow
def test_what_does_not_exist_is_remembered_and_leaves_nothing(allowing: Allowing, upstream: HttpUpstream) -> None:
    """And a name that needs a credential; both get what an unknown path gets."""
    serve = allowing()
    upstream.add("acme/secret", upstream.path(WIDGETS))
    upstream.on("acme/secret").require_password = True
    for name in ("acme/nothing", "acme/secret"):
        unknown = git_result("ls-remote", f"{serve.git_url}/elsewhere/{name[5:]}")
        assert git_result("ls-remote", f"{serve.git_url}/{name}")[2] == unknown[2].replace("elsewhere", "acme")
        asked = upstream.count(name)
        assert asked
        status, _, body = get(serve, f"/{name}/info/refs?service={UPLOAD_PACK}")
        assert (status, body) == (404, f"/{name} is not mirrored here\n")
        assert get(serve, f"/{name}/workspace.tar")[::2] == (404, f"/{name} is not mirrored here\n")
        assert upstream.count(name) == asked
    assert leaves_nothing(serve)
    status_now = serve.status()
    assert status_now["warnings"] == [] and get_admin(serve, "/readyz") == 200
    assert serve.cli("status", check=False).returncode == 0


def get_admin(serve: Serve, path: str) -> int:
    """The status of a page of the admin port."""
    connection = http.client.HTTPConnection(urlsplit(serve.admin_url).netloc, timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.slow
def test_an_upstream_that_hangs_stops_nobody_else(allowing: Allowing, upstream: HttpUpstream, tmp_path: Path) -> None:
    """Ten names hang when asked, one in the middle of its clone; another one is brought and served meanwhile."""
    serve = allowing(wait="5s")
    upstream.add("acme/other", upstream.path(WIDGETS))
    upstream.add("acme/halfway", upstream.path(WIDGETS))
    for number in range(10):
        upstream.on(f"acme/hangs{number}").hang = True
    upstream.on("acme/halfway").hang_after = 3000
    with ThreadPoolExecutor(11) as pool:

        def ask(name: str) -> Future[tuple[int, str, str]]:
            return pool.submit(git_result, "ls-remote", f"{serve.git_url}/{name}", timeout=60)

        halfway = ask("acme/halfway")
        wait_until(lambda: upstream.hanging == 1, message="the clone hangs")
        hung = [*(ask(f"acme/hangs{number}") for number in range(10)), halfway]
        wait_until(lambda: upstream.hanging >= 5, message="upstreams hang")

        def brought() -> bool:
            code, _, _ = git_result("ls-remote", f"{serve.git_url}/acme/other", timeout=60)
            return code == 0

        wait_until(brought, timeout=60, message="the other one is brought")
        serve.clone(tmp_path / "other", "acme/other")
        answers = [task.result() for task in hung]
    assert all(code for code, _, _ in answers)
    assert "was asked for" in answers[0][2] and "try again" in answers[0][2]
    assert "is being cloned" in answers[-1][2]
    status, headers, body = get(serve, f"/acme/halfway/info/refs?service={UPLOAD_PACK}")
    assert status == 307 and headers["location"] == f"{upstream.url('acme/halfway')}/info/refs?service={UPLOAD_PACK}"
    status, headers, body = get(serve, "/acme/halfway/workspace.tar")
    assert (status, headers["retry-after"]) == (503, "30") and "is being cloned" in body
    # A guest that waited does not wait again, and the clone goes on.
    upstream.reset()
    serve.wait_for_repo("acme/halfway")


@pytest.mark.slow
def test_a_slow_clone_redirects_a_fetch(allowing: Allowing, upstream: HttpUpstream, tmp_path: Path) -> None:
    """git follows the redirect and has its workspace from the upstream, while the clone goes on."""
    serve = allowing(wait="0.5s")
    upstream.on(WIDGETS).hang_after = 3000
    ls = threading.Thread(target=git_result, args=("ls-remote", f"{serve.git_url}/{WIDGETS}"))
    ls.start()
    wait_until(lambda: upstream.hanging, message="the clone hangs")
    code, _, err = git_result("ls-remote", f"{serve.git_url}/{WIDGETS}")
    assert code and "is being cloned" in err
    assert get(serve, f"/{WIDGETS}/info/refs?service={UPLOAD_PACK}")[0] == 307
    upstream.reset()
    ls.join()
    serve.wait_for_repo(WIDGETS)
    serve.clone(tmp_path / "work", WIDGETS, http=True)


@pytest.mark.slow
def test_a_guest_that_hangs_up_ends_its_wait_alone(allowing: Allowing, upstream: HttpUpstream) -> None:
    """When the last one has gone, the upstream is not asked any more. Over HTTP it may have ended its side only."""
    serve = allowing(wait="60s")
    upstream.on("acme/hangs").hang = True
    guests = [socket.create_connection(serve.git_address) for _ in range(2)]
    for guest in guests:
        guest.sendall(pkt("git-upload-pack /acme/hangs\0host=x\0\0version=2\0"))
    wait_until(lambda: upstream.hanging, message="the upstream is asked")
    wait_until(lambda: serve.status()["clients"] == 2, message="two wait")
    guests[0].close()
    wait_until(lambda: serve.status()["clients"] == 1, message="one has left")
    assert upstream.hanging == 1
    guests[1].close()
    wait_until(lambda: upstream.hanging == 0, message="nobody asks any more")
    assert leaves_nothing(serve)
    split = urlsplit(serve.http_url)
    with socket.create_connection((split.hostname, split.port), timeout=60) as over_http:
        over_http.sendall(f"GET /{WIDGETS}/freshness HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        over_http.shutdown(socket.SHUT_WR)
        assert over_http.makefile("rb").read().startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_a_flood_of_names_starves_nobody(allowing: Allowing, upstream: HttpUpstream) -> None:
    """One address asks for 100 names that do not exist. The upstream is asked at a rate, another guest is served."""
    serve = allowing(wait="10s")
    names = [f"acme/made-up-{number}" for number in range(100)]
    with ThreadPoolExecutor(100) as pool:
        began = time.monotonic()
        flood = [pool.submit(get, serve, f"/{name}/info/refs?service={UPLOAD_PACK}") for name in names]
        wait_until(lambda: len({request.repo for request in upstream.requests}) >= 20, message="the burst is over")
        other = http.client.HTTPConnection(urlsplit(serve.http_url).netloc, timeout=60, source_address=("127.0.0.2", 0))
        other.request("GET", f"/{WIDGETS}/freshness")
        assert other.getresponse().status == 200
        asked, seconds = len({request.repo for request in upstream.requests}), time.monotonic() - began
        # The burst, and one for each second since.
        assert asked <= 20 + seconds + 2
        other.close()
        for each in flood:
            each.result()


@pytest.mark.slow
def test_only_what_is_allowed_is_asked_for(allowing: Allowing, upstream: HttpUpstream) -> None:
    """A push, another owner and a path out of the pattern cause no request, and no wait."""
    serve = allowing()
    began = time.monotonic()
    for path in ("other/x", "acme/../other/x", "acme/%2e%2e", "acme/a/b", "acme/né"):
        assert git_result("ls-remote", f"{serve.git_url}/{path}")[0]
        assert get(serve, f"/{path.replace('é', '%C3%A9')}/info/refs?service={UPLOAD_PACK}")[0] in (404, 400)
    assert get(serve, f"/{WIDGETS}/info/refs?service=git-receive-pack")[0] == 404
    assert upstream.requests == [] and time.monotonic() - began < 10


@pytest.mark.slow
@pytest.mark.parametrize("over_http", [False, True], ids=["git", "http"])
def test_a_name_that_is_registered_is_never_taken_over(
    serve_factory: Any, upstream: HttpUpstream, over_http: bool
) -> None:
    """Another upstream has the name; the same upstream has another name; its case differs; it is disabled."""
    upstream.add("other/widgets", upstream.path(WIDGETS))
    upstream.add("acme/off", upstream.path(WIDGETS))
    upstream.add("acme/aside", upstream.path(WIDGETS))
    serve = serve_factory(
        repos=[
            {"url": upstream.url("other/widgets"), "name": "acme/taken"},
            {"url": upstream.url("acme/aside"), "name": "tools/aside"},
            upstream.url("acme/off"),
        ],
        allow=[{"url": f"{upstream.url('acme')}/*"}],
        serve={"wait_for_clone": "5s"},
    ).start()
    for name in ("acme/taken", "tools/aside", "acme/off"):
        serve.wait_for_repo(name)
    serve.cli("disable", "acme/off")
    upstream.add("acme/taken")
    before = sources(serve)
    base = serve.http_url if over_http else serve.git_url
    for path in ("acme/aside", "acme/Aside", "acme/off", "acme/Taken"):
        assert git_result("-c", "http.followRedirects=false", "ls-remote", f"{base}/{path}")[0], path
    assert sources(serve) == before
    # It is still the other upstream's; the one that would have the name is empty.
    assert git_result("ls-remote", f"{base}/acme/taken")[1]
