"""Upstreams that fail for every known reason: each has its own kind of error, and recovers by itself."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import WIDGETS, ServeFactory
from tests.observability.conftest import repo_of, status_of
from tests.observability.outlets import documents, script
from tests.serving.fetch.conftest import metric
from tests.serving.fetch.wire import http_ask
from tests.support.generate import add_commit
from tests.support.gitutil import git, wait_until
from tests.support.serve import Serve, Value
from tests.support.tls import TlsFront, make_certificate
from tests.support.upstream import GitDaemonUpstream, HttpUpstream

QUICK: dict[str, Value] = {"interval": "1s", "timeout": "2s", "stale_after": "1h", "concurrency": 8}
SWITCHES: dict[str, tuple[dict[str, Any], str]] = {
    "timeout": ({"hang": True}, "longer than 8s"),
    "auth": ({"require_password": True}, "credential"),
    "not-found": ({"not_found": True}, "no such repository"),
    "rate-limited": ({"status": 429, "retry_after": 1}, "rate limit"),
    "server-error": ({"fail": True}, "500"),
    "broken": ({"cut_after": 300}, "cut off"),
}


@pytest.mark.slow
def test_every_trouble_has_its_own_words_and_clears_by_itself(
    serve_factory: ServeFactory, upstream: HttpUpstream, generated_bare: Path, tmp_path: Path
) -> None:
    """In `status`, in /metrics and in the alert, all at once, while guests are served."""
    told = tmp_path / "told"
    right = make_certificate(tmp_path, "right")
    wrong = make_certificate(tmp_path, "wrong", "DNS:other.example")
    kinds = [*SWITCHES, "tls", "refused"]
    for kind in SWITCHES:
        upstream.add(f"bad/{kind}", generated_bare)
    upstream.add("bad/tls", generated_bare)
    with GitDaemonUpstream(tmp_path / "daemon") as daemon, TlsFront(upstream.port, right) as front:
        daemon.add("bad/refused", generated_bare)
        urls = [upstream.url(name) for name in (WIDGETS, *(f"bad/{kind}" for kind in SWITCHES))]
        urls += [front.url("bad/tls"), daemon.url("bad/refused"), "http://no-such-host.invalid/bad/dns"]
        serve = serve_factory(
            # The one that hangs takes the longest. The others would be asked a hundred times meanwhile.
            repos=[{"url": url, "interval": "1s" if url.endswith("timeout") else "4s"} for url in urls],
            # Longer than a refresh takes that nothing is wrong with, however busy the machine is.
            refresh={**QUICK, "timeout": "8s"},
            alerts={"command": script(tmp_path / "tell", f"cat >>{told}")},
            env={"GIT_SSL_CAINFO": str(right.cert)},
        ).start()
        for name in (WIDGETS, *(f"bad/{kind}" for kind in kinds)):
            serve.wait_for_repo(name)
        for kind, (faults, _) in SWITCHES.items():
            for fault, value in faults.items():
                setattr(upstream.on(f"bad/{kind}"), fault, value)
        front.certificate = wrong
        daemon.stop()
        words = {kind: said for kind, (_, said) in SWITCHES.items()}
        words |= {"tls": "certificate", "refused": "cannot connect", "dns": "resolved"}
        for kind in words:
            found = serve.wait_for_repo(f"bad/{kind}", "failing", timeout=60)
            assert found["error"] == kind and found["hint"], found
            assert words[kind] in found["last_error"], found["last_error"]
            assert metric(serve, "gitmirror_repo_error", repo=f"bad/{kind}", kind=kind) == 1
            assert metric(serve, "gitmirror_refresh_failures_total", repo=f"bad/{kind}", kind=kind) >= 1
        text = serve.cli("status", check=False).stdout
        assert text.count("what to do: ") == len(words) and "cannot be resolved" in text
        tip = add_commit(upstream.path(WIDGETS), "main", {"x": "1\n"})
        serve.wait_for_ref(WIDGETS, "refs/heads/main", tip)
        for name in ("bad/timeout", "bad/tls", WIDGETS):
            serve.clone(tmp_path / f"clone-of-{name.replace('/', '-')}", name, "--depth=1")
        upstream.reset()
        front.certificate = right
        daemon.start()
        for kind in kinds:
            found = serve.wait_for_repo(f"bad/{kind}", timeout=60)
            assert (found["last_error"], found["error"], found["hint"]) == (None, None, None)
        assert metric(serve, "gitmirror_repo_error") == 1, "only the one that cannot be mended has an error"
        wait_until(lambda: len(documents(told)) == 2 * len(kinds) + 1, message="all is told")
    for kind in words:
        alerts = [each for each in documents(told) if each["repo"] == f"bad/{kind}"]
        assert [each["event"] for each in alerts] == ["failing", *([] if kind == "dns" else ["recovered"])]
        assert (alerts[0]["error"], alerts[0]["state"]) == (kind, "failing") and words[kind] in alerts[0]["words"]
    assert not [each for each in documents(told) if each["repo"] == WIDGETS]


@pytest.mark.slow
def test_an_upstream_that_asks_for_patience_is_not_asked_before(
    serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path
) -> None:
    """Neither by the schedule nor for webhooks and guests, even after a restart. An operator may insist."""
    token = tmp_path / "token"
    token.write_text("t")
    upstream.add("acme/other")
    repos = [upstream.url(WIDGETS), upstream.url("acme/other")]
    serve = serve_factory(repos=repos, refresh={**QUICK, "timeout": "30s", "token_file": str(token)}).start()
    serve.wait_for_repo(WIDGETS)
    switches = upstream.on(WIDGETS)
    switches.retry_after, switches.status = 3600, 429
    wait_until(lambda: repo_of(serve)["error"] == "rate-limited", message="it is told")
    upstream.forget()
    assert repo_of(serve)["retry_at"] > repo_of(serve)["verified_at"]
    reply = http_ask(f"{serve.admin_url}/{WIDGETS}/refresh", "POST", {"Authorization": "Bearer t"}, b"")
    assert reply.status == 202
    assert b'"has": false' in http_ask(f"{serve.http_url}/{WIDGETS}/freshness?want={'a' * 40}").body
    serve.restart()
    asked = upstream.count("acme/other")
    wait_until(lambda: upstream.count("acme/other") >= asked + 4, message="others are asked as ever")
    assert upstream.count(WIDGETS) == 0
    switches.reset()
    assert serve.cli_json("refresh", WIDGETS)[0]["error"] is None
    assert repo_of(serve)["retry_at"] is None
    wait_until(lambda: upstream.count(WIDGETS) > 3, message="the schedule goes on")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True)
    if done.returncode or os.geteuid():
        pytest.skip("only root can mount a small disk to fill")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def about_the_repository(told: Path) -> list[dict[str, Any]]:
    """Alerts without those about pushes, which a full disk turns off."""
    return [each for each in documents(told) if each["repo"] is not None]


@pytest.mark.slow
def test_a_full_disk_is_told_and_clears(small_disk: Path, upstream: HttpUpstream, tmp_path: Path) -> None:
    """A fetch without disk space gets its own kind of error, guests are served, and it recovers once there is space."""
    name = "acme/small"
    path = upstream.add(name)
    add_commit(path, "main", {"x": "1\n"})
    told = tmp_path / "told"
    serve = Serve(
        small_disk / "state",
        repos=[upstream.url(name)],
        refresh={**QUICK, "timeout": "20s"},
        workspace={"enabled": False},
        alerts={"command": script(tmp_path / "tell", f"cat >>{told}")},
    )
    with serve:
        serve.start()
        before = serve.wait_for_repo(name)["tip"]
        filling = small_disk / "filling"
        with contextlib.suppress(OSError), filling.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        tip = add_commit(path, "main", {"big": os.urandom(200_000)})
        wait_until(lambda: repo_of(serve, name)["error"] is not None, timeout=60, message="it is told")
        assert repo_of(serve, name)["error"] == "disk-full", repo_of(serve, name)["last_error"]
        assert "disk is full" in repo_of(serve, name)["last_error"]
        assert metric(serve, "gitmirror_repo_error", repo=name, kind="disk-full") == 1
        serve.clone(tmp_path / "guest", name)
        assert git("rev-parse", "HEAD", cwd=tmp_path / "guest") == before
        wait_until(lambda: about_the_repository(told), timeout=60, message="somebody is told")
        filling.unlink()
        serve.wait_for_ref(name, "refs/heads/main", tip)
        wait_until(lambda: repo_of(serve, name)["error"] is None, message="it is well")
        wait_until(lambda: len(about_the_repository(told)) == 2, message="that it is well is told too")
    assert [(each["event"], each["error"]) for each in about_the_repository(told)] == [
        ("failing", "disk-full"),
        ("recovered", None),
    ]


@pytest.mark.slow
def test_a_hung_upstream_never_makes_the_watchdog_restart_serve(
    serve_factory: ServeFactory, upstream: HttpUpstream, notified: Callable[[], list[str]], notify_socket: str
) -> None:
    """The pings continue while every refresh hangs, and the status line names the worst repository and its error."""
    serve = serve_factory(
        repos=[upstream.url(WIDGETS)],
        refresh={**QUICK, "timeout": "1s", "interval": "1s"},
        env={"NOTIFY_SOCKET": notify_socket, "WATCHDOG_USEC": "4000000"},
    ).start()
    serve.wait_for_repo(WIDGETS)
    upstream.everywhere.hang = True
    wait_until(lambda: upstream.hanging, message="it hangs")
    notified()
    pings, told = 0, False

    def look() -> bool:
        nonlocal pings, told
        said = notified()
        pings += sum("WATCHDOG=1" in each for each in said)
        told |= any(f"worst: {WIDGETS} (failing, timeout, " in each for each in said)
        return told and pings >= 3

    wait_until(look, message="systemd's line tells it, and there are pings")
    assert status_of(serve)["repos"][0]["state"] == "failing"
