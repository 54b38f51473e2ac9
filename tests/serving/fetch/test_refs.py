"""ls-refs: git's own answer byte for byte, from a snapshot that is never behind a push or refresh that has returned."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import WIDGETS, ServeFactory
from tests.serving.conftest import SETTLED, Node, make_turn
from tests.serving.fetch.conftest import TOOLS, Counting, status_of, wait_warm
from tests.serving.fetch.wire import ask, ask_git, error_of, http_ask, open_v2, post_headers, v2_request
from tests.support.generate import add_commit, set_head
from tests.support.gitutil import git, git_result, remote_refs, wait_until
from tests.support.pkt import ZERO, raw_push
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

EMPTY, UNBORN, NESTED = "acme/empty", "acme/unborn", "acme/nested"


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory, generated_bare: Path) -> Iterator[Node]:
    """Repositories whose refs are unusual: none at all, a HEAD without a branch, tags of tags of all kinds."""
    base = tmp_path_factory.mktemp("odd")
    with HttpUpstream(base / "upstream") as upstream:
        upstream.add(EMPTY)
        upstream.add(UNBORN, generated_bare)
        nested = upstream.add(NESTED, generated_bare)
        for name, what in (("tree", "main^{tree}"), ("blob", "main:README.md"), ("once", "main"), ("twice", "once")):
            git("tag", "--annotate", "--message=A tag", name, what, cwd=nested)
        git("tag", "--annotate", "--message=A tag", "thrice", "twice", cwd=nested)
        git("update-ref", "refs/heads/naïve/☃", "main", cwd=nested)
        names = [EMPTY, UNBORN, NESTED]
        with Serve(base / "state", repos=[upstream.url(name) for name in names], refresh=SETTLED).start() as serve:
            for name in names:
                serve.wait_for_repo(name)
            git("symbolic-ref", "HEAD", "refs/heads/trunk", cwd=serve.mirror(EMPTY))
            git("symbolic-ref", "HEAD", "refs/heads/not-yet", cwd=serve.mirror(UNBORN))
            # What guests must never see; that of the appliance's own refs is hidden by the mirror's config.
            for kind in ("anchors", "tips", "turns"):
                git("update-ref", f"refs/gitmirror/{kind}/x", "main", cwd=serve.mirror(NESTED))
            git("update-ref", "refs/agents/s1", "main", cwd=serve.mirror(NESTED))
            # Done by hand, so it is seen when the snapshot is old.
            everything = v2_request("ls-refs", ["peel", "symrefs", "unborn"])
            for name in names:
                wait_until(lambda: ask(serve, name, everything) == ask_git(serve.mirror(name), everything))  # noqa: B023
            yield Node(serve, upstream)


PREFIXES: tuple[tuple[str, ...], ...] = (
    (),
    ("HEAD",),
    ("refs/heads/", "refs/tags/", "HEAD"),
    ("refs/heads/ma",),
    ("refs/tags/v0.1", "refs/tags/", "refs/agents/"),
    ("refs/gitmirror/", "refs/agents/"),
    ("refs/heads/naïve/",),
    ("nothing",),
    ("",),
    ("H", "refs"),
)


@pytest.mark.parametrize("repo", [EMPTY, UNBORN, NESTED])
def test_every_answer_is_gits_own(odd: Node, repo: str) -> None:
    """Byte for byte what `git upload-pack` says on the mirror, for all combinations of what may be asked."""
    options = ("symrefs", "peel", "unborn")
    with open_v2(odd.serve, repo) as sock:
        for count in range(len(options) + 1):
            for chosen, prefixes in itertools.product(itertools.combinations(options, count), PREFIXES):
                request = v2_request("ls-refs", [*chosen, *(f"ref-prefix {each}" for each in prefixes)])
                sock.sendall(request)
                expected = ask_git(odd.serve.mirror(repo), request)
                assert expected.endswith(b"0000")
                answer = b""
                while len(answer) < len(expected) or not answer.endswith(b"0000"):
                    answer += sock.recv(65536)
                assert answer == expected, (chosen, prefixes)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(("peel", "symrefs", "unborn")),
            st.text(alphabet="HEADrefs/tgv0.1m", max_size=12).map("ref-prefix {}".format),
        ),
        max_size=6,
    )
)
def test_any_arguments_get_gits_own_answer(node: Node, arguments: list[str]) -> None:
    """Options in any order and number, prefixes that cut names anywhere."""
    request = v2_request("ls-refs", arguments)
    assert ask(node.serve, TOOLS, request) == ask_git(node.serve.mirror(TOOLS), request)


@pytest.mark.parametrize("count", [65534, 65535, 65536, 65537])
def test_too_many_prefixes_are_as_good_as_none(node: Node, count: int) -> None:
    """git gives up filtering at a number of its own; the guest sees the same refs either way."""
    request = v2_request("ls-refs", ["ref-prefix refs/heads/main"] * count)
    assert ask(node.serve, TOOLS, request) == ask_git(node.serve.mirror(TOOLS), request)


def test_http_gives_the_same_answer(odd: Node) -> None:
    """One engine for both ports."""
    request = v2_request("ls-refs", ["peel", "symrefs", "unborn"])
    reply = http_ask(f"{odd.serve.http_url}/{NESTED}/git-upload-pack", "POST", post_headers(), request)
    assert (reply.status, reply.body) == (200, ask_git(odd.serve.mirror(NESTED), request))


@pytest.mark.parametrize("line", ["from-the-future", "peel now", "want " + "a" * 40])
def test_an_argument_that_git_does_not_know_is_refused_as_by_git(node: Node, line: str) -> None:
    """Nothing is guessed: git ends there, and so do we."""
    request = v2_request("ls-refs", ["peel", line])
    assert ask_git(node.serve.mirror(TOOLS), request) == b""
    assert ask(node.serve, TOOLS, request) == b""


def test_what_is_the_appliances_own_is_never_shown(odd: Node) -> None:
    """Private refs in no protocol; recorded sessions in all."""
    for protocol, version in itertools.product(("git", "http"), (0, 1, 2)):
        base = odd.serve.git_url if protocol == "git" else odd.serve.http_url
        listing = git("-c", f"protocol.version={version}", "ls-remote", f"{base}/{NESTED}")
        assert "refs/gitmirror" not in listing
        assert "refs/agents/s1" in listing


@pytest.mark.parametrize("protocol", ["git", "http"])
def test_an_empty_repository_can_be_cloned_and_gets_its_branch(odd: Node, tmp_path: Path, protocol: str) -> None:
    """An unborn HEAD names the branch that the clone's first commit will be on."""
    base = odd.serve.git_url if protocol == "git" else odd.serve.http_url
    git("clone", "--quiet", f"{base}/{EMPTY}", str(tmp_path / "clone"))
    assert git("symbolic-ref", "HEAD", cwd=tmp_path / "clone") == "refs/heads/trunk"
    git("clone", "--quiet", f"{base}/{UNBORN}", str(tmp_path / "unborn"))
    assert git("symbolic-ref", "HEAD", cwd=tmp_path / "unborn") == "refs/heads/not-yet"


def test_commands_that_are_not_ours_are_handed_to_git(node: Node) -> None:
    """`object-info` is answered by git when it is on, and an unknown command ends the connection as git does."""
    request = v2_request("object-info", ["size", f"oid {node.tip}"])
    git("config", "transfer.advertiseObjectInfo", "true", cwd=node.serve.mirror(TOOLS))
    try:
        expected = ask_git(node.serve.mirror(TOOLS), request)
        assert node.tip.encode() in expected
        assert ask(node.serve, TOOLS, request) == expected
    finally:
        git("config", "--unset", "transfer.advertiseObjectInfo", cwd=node.serve.mirror(TOOLS))
    assert ask(node.serve, TOOLS, v2_request("from-the-future")) == b""
    assert remote_refs(f"{node.serve.git_url}/{TOOLS}")


def test_a_request_that_makes_no_sense_gets_words(node: Node) -> None:
    """Within a connection too: one ERR packet that git would show."""
    with open_v2(node.serve, WIDGETS) as sock:
        sock.sendall(b"zzzz")
        assert "is no packet length" in error_of(sock)


# Never stale


@pytest.mark.slow
def test_refs_are_never_stale_after_a_push(node: Node) -> None:
    """A guest that was told that its push is done sees it at once, and so does everybody else, also on the way."""
    turns = [make_turn(node.mirror, f"seen at once {number}") for number in range(8)]
    request = v2_request("ls-refs", ["ref-prefix refs/agents/at-once"])
    with _Onlooker(node.serve, request):
        old = ZERO
        for turn in turns:
            answer = raw_push(
                *node.serve.git_address, f"/{WIDGETS}", [(old, turn.commit, "refs/agents/at-once")], turn.pack
            )
            assert answer.accepted, answer
            assert f"{turn.commit} refs/agents/at-once\n".encode() in ask(node.serve, WIDGETS, request)
            old = turn.commit


@pytest.mark.slow
def test_refs_are_never_stale_after_a_refresh(serve_factory: ServeFactory, upstream: HttpUpstream) -> None:
    """`refresh` returns, and no guest sees the old tip, branch or default branch any more."""
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED).start()
    serve.wait_for_repo(WIDGETS)
    request = v2_request("ls-refs", ["symrefs", "peel"])
    bare = upstream.path(WIDGETS)
    with _Onlooker(serve, request):
        for number in range(4):
            tip = add_commit(bare, "main", {"n.txt": str(number)})
            if number == 1:
                git("branch", "new", "main", cwd=bare)
            if number == 2:
                git("branch", "--delete", "--force", "new", cwd=bare)
                git("tag", "--annotate", "--message=x", "v9", "main", cwd=bare)
            if number == 3:
                set_head(bare, "develop")
            serve.cli("refresh", WIDGETS)
            answer = ask(serve, WIDGETS, request)
            assert f"{tip} refs/heads/main\n".encode() in answer
            assert (b"refs/heads/new" in answer) == (number == 1)
            assert (b"refs/tags/v9" in answer) == (number >= 2)
            assert (b"symref-target:refs/heads/develop" in answer) == (number == 3)
            assert answer == ask_git(serve.mirror(WIDGETS), request)


@pytest.mark.slow
def test_a_clone_right_after_a_refresh_is_of_the_new_tip(
    serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path
) -> None:
    """Not only ls-refs: objects and tags too, with `include-tag` and without."""
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED).start()
    serve.wait_for_repo(WIDGETS)
    tip = ""
    for number in range(3):
        tip = tip or git("rev-parse", "main", cwd=upstream.path(WIDGETS))
        clone = serve.clone(tmp_path / f"before{number}", WIDGETS, "--single-branch", "--branch=main")
        assert f"extra-{number}" not in git("tag", "--list", cwd=clone)
        # The same wants, other tags: the answer that was kept is not right any more.
        git("tag", "--annotate", "--message=x", f"extra-{number}", tip, cwd=upstream.path(WIDGETS))
        serve.cli("refresh", WIDGETS)
        clone = serve.clone(tmp_path / f"after{number}", WIDGETS, "--single-branch", "--branch=main")
        assert git("rev-parse", f"extra-{number}^{{commit}}", cwd=clone) == tip


@pytest.mark.slow
def test_a_ref_that_somebody_else_moved_is_seen_within_a_second(node: Node) -> None:
    """What is done to a mirror by hand is seen as soon as the snapshot is old."""
    request = v2_request("ls-refs", ["ref-prefix refs/agents/by-hand"])
    for change in (("refs/agents/by-hand", node.tip), ("-d", "refs/agents/by-hand")):
        git("update-ref", *change, cwd=node.mirror)
        wait_until(
            lambda: ask(node.serve, WIDGETS, request) == ask_git(node.mirror, request), timeout=60, message="it is seen"
        )


def test_ls_refs_runs_no_git_while_the_snapshot_is_fresh(node: Node) -> None:
    """A hundred guests that look in the same moment cost a hundred small answers."""
    request = v2_request("ls-refs", ["peel", "symrefs"])
    counting = Counting(node.serve)
    with open_v2(node.serve, WIDGETS) as sock:
        sock.sendall(request * 100)
        expected = ask_git(node.mirror, request) * 100
        answer = b""
        while len(answer) < len(expected):
            answer += sock.recv(1 << 20)
    assert answer == expected
    assert counting.since() == {}, "listing is no hydration"
    assert status_of(node.serve)["serving"]


@pytest.mark.slow
def test_ls_refs_runs_no_git_while_nothing_changes(
    serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path
) -> None:
    """A snapshot that is older than a second is looked at, not made anew: guests one by one cost no process."""
    log = tmp_path / "upload-packs"
    wrapper = tmp_path / "bin" / "git"
    wrapper.parent.mkdir()
    real = shutil.which("git")
    wrapper.write_text(f'#!/bin/sh\ncase " $* " in *" upload-pack "*) echo x >>{log};; esac\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    path = f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}"
    serve = serve_factory(repos=[upstream.url(WIDGETS)], refresh=SETTLED, env={"PATH": path}).start()
    serve.wait_for_repo(WIDGETS)
    wait_warm(serve)
    request = v2_request("ls-refs", ["peel", "symrefs"])
    expected = ask_git(serve.mirror(WIDGETS), request)

    def started() -> int:
        return len(log.read_text().splitlines())

    def quiet(seconds: float) -> bool:
        before, end = started(), time.monotonic() + seconds
        while time.monotonic() < end:
            assert ask(serve, WIDGETS, request) == expected
        return started() == before

    # Refs that are young are asked for again each second.
    wait_until(lambda: quiet(2.5), timeout=60, message="listing refs starts no git")
    git("update-ref", "refs/agents/by-hand", "main", cwd=serve.mirror(WIDGETS))
    wait_until(lambda: ask(serve, WIDGETS, request) != expected, timeout=60, message="a change is seen all the same")


class _Onlooker:
    """A guest that asks all the time, so that there is always a snapshot, or one being made. A context manager."""

    def __init__(self, serve: Serve, request: bytes) -> None:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, args=(serve, request))
        self.looks = 0

    def __enter__(self) -> _Onlooker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(60)
        assert self.looks > 3

    def _look(self, serve: Serve, request: bytes) -> None:
        while not self._done.is_set():
            ask(serve, WIDGETS, request)
            self.looks += 1


def test_git_shows_the_refs_it_should(node: Node) -> None:
    """Through git itself, on both ports: the listing of the upstream."""
    expected = remote_refs(node.upstream.url(WIDGETS))
    for base in (node.serve.git_url, node.serve.http_url):
        for version in (0, 1, 2):
            code, listing, _ = git_result("-c", f"protocol.version={version}", "ls-remote", f"{base}/{WIDGETS}")
            found = {name: oid for oid, name in (line.split("\t") for line in listing.splitlines())}
            found = {name: oid for name, oid in found.items() if not name.startswith("refs/agents/")}
            assert (code, found) == (0, expected)
