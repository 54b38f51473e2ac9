"""Sessions of another node come when a guest, a command or the API asks for them."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.conftest import WIDGETS
from tests.fleet.away import Elsewhere
from tests.support.gitutil import fsck, git, git_result, refs
from tests.support.nats import NatsCluster
from tests.support.serve import Serve, wait_until
from tests.support.upstream import HttpUpstream

pytestmark = pytest.mark.slow

_names = itertools.count()


def new_session() -> str:
    """A name that no other test uses."""
    return f"s{next(_names)}"


@pytest.fixture(scope="module")
def away(
    tmp_path_factory: pytest.TempPathFactory, generated_bare: Path, module_nats: NatsCluster
) -> Iterator[Elsewhere]:
    """Node `b`, which serves, and node `a`, of which only what it stored is left."""
    base = tmp_path_factory.mktemp("bring")
    with HttpUpstream(base / "upstream") as upstream:
        upstream.add(WIDGETS, generated_bare)
        fleet = {"servers": module_nats.urls, "node": "b", "name": "bring"}
        refresh = {"interval": "1h", "stale_after": "1d"}
        with Serve(base / "b", repos=[upstream.url(WIDGETS)], fleet=fleet, refresh=refresh).start() as serve:
            serve.wait_for_repo(WIDGETS)
            wait_until(lambda: " as b" in serve.log(), message="the fleet is there")
            yield Elsewhere.of(serve, module_nats, upstream, "bring", base / "clone")


def tip(away: Elsewhere, session: str, *, http: bool = False) -> str:
    """The commit that a guest gets for a session; empty if it gets none."""
    base = away.serve.http_url if http else away.serve.git_url
    place = away.clone.parent / f"tip-{next(_names)}"
    git("init", "-q", "--bare", str(place))
    code, _, err = git_result("fetch", "-q", f"{base}/{WIDGETS}", f"refs/agents/{session}", cwd=place)
    assert code == 0 or "couldn't find remote ref" in err, err
    return git("rev-parse", "FETCH_HEAD", cwd=place) if code == 0 else ""


def fetched(away: Elsewhere, tmp_path: Path, session: str, *options: str) -> tuple[int, str, str]:
    """What `git fetch` of a session says, in a new repository."""
    place = tmp_path / f"guest-{next(_names)}"
    git("init", "-q", str(place))
    url = f"{away.serve.git_url}/{WIDGETS}"
    return git_result(*options, "fetch", "-q", url, f"refs/agents/{session}:refs/heads/got", cwd=place)


def turn_refs(away: Elsewhere) -> dict[str, str]:
    """The refs of turns in the mirror."""
    return {ref: oid for ref, oid in refs(away.serve.mirror(WIDGETS)).items() if ref.startswith("refs/gitmirror/turns")}


def test_a_guest_gets_a_session_of_another_node(away: Elsewhere, tmp_path: Path) -> None:
    for scheme in (away.serve.git_url, away.serve.http_url):
        session, commit = new_session(), away.commit(anew=True)
        away.record(session, commit)
        start = time.monotonic()
        git("clone", "-q", "--no-checkout", f"{scheme}/{WIDGETS}", str(tmp_path / session))
        git("fetch", "-q", "origin", f"refs/agents/{session}", cwd=tmp_path / session)
        print(f"clone and fetch: {time.monotonic() - start:.3f} s")
        assert git("rev-parse", "FETCH_HEAD", cwd=tmp_path / session) == commit
        assert refs(away.serve.mirror(WIDGETS))[f"refs/agents/{session}"] == commit
        assert commit in turn_refs(away).values()
    fsck(away.serve.mirror(WIDGETS))


def test_a_newer_turn_of_another_node_is_never_passed_over(away: Elsewhere, tmp_path: Path) -> None:
    session, first = new_session(), away.commit(anew=True)
    away.record(session, first)
    assert tip(away, session) == first
    away.record(session, second := away.commit(), needs=[first])
    assert tip(away, session, http=True) == second
    assert fetched(away, tmp_path, session)[0] == 0


def test_turns_that_build_on_each_other_come_together(away: Elsewhere) -> None:
    session, before = new_session(), "origin/HEAD"
    git("checkout", "-q", "--detach", "origin/HEAD", cwd=away.clone)
    for number in range(5):
        commit = away.commit(f"{number}.txt")
        away.record(session, commit, needs=[before])
        before = commit
    assert tip(away, session) == before


def test_a_push_here_goes_on_from_a_turn_of_another_node(away: Elsewhere, tmp_path: Path) -> None:
    session, commit = new_session(), away.commit(anew=True)
    away.record(session, commit)
    url = f"{away.serve.git_url}/{WIDGETS}"
    git("clone", "-q", url, str(tmp_path / "work"))
    git("fetch", "-q", "origin", f"refs/agents/{session}", cwd=tmp_path / "work")
    git("checkout", "-q", "FETCH_HEAD", cwd=tmp_path / "work")
    git("commit", "-q", "--allow-empty", "-m", "here", cwd=tmp_path / "work")
    git("push", "-q", "origin", f"HEAD:refs/agents/{session}", cwd=tmp_path / "work")
    here = git("rev-parse", "HEAD", cwd=tmp_path / "work")
    assert tip(away, session) == here
    shown = away.serve.cli_json("session", "show", WIDGETS, session)
    assert [turn["commit"] for turn in shown["turns"]] == [commit, here]
    assert shown["turns"][1]["since_last"] is not None


def test_commits_of_the_upstream_that_are_not_here_come_by_a_refresh(away: Elsewhere, tmp_path: Path) -> None:
    work = tmp_path / "upstream-work"
    git("clone", "-q", str(away.upstream.path(WIDGETS)), str(work))
    git("commit", "-q", "--allow-empty", "-m", "newer", cwd=work)
    git("push", "-q", "origin", "HEAD", cwd=work)
    git("fetch", "-q", "origin", cwd=away.clone)
    session, commit = new_session(), away.commit(anew=True)
    away.record(session, commit)
    assert tip(away, session) == commit
    # The upstream has the commit itself: nothing was bundled.
    git("commit", "-q", "--allow-empty", "-m", "newest", cwd=work)
    git("push", "-q", "origin", "HEAD", cwd=work)
    newest, other = git("rev-parse", "HEAD", cwd=work), new_session()
    git("fetch", "-q", "origin", cwd=away.clone)
    away.record(other, newest, bundled=False)
    assert tip(away, other) == newest


def test_what_nobody_has_is_named(away: Elsewhere, tmp_path: Path) -> None:
    session, missing = new_session(), away.commit(anew=True)
    away.record(session, away.commit(), needs=[missing])
    code, _, err = fetched(away, tmp_path, session)
    assert code != 0 and f"session {session} was recorded on node a and cannot be fetched now" in err
    assert missing in err
    code, _, err = fetched(away, tmp_path, session, "-c", "protocol.version=0")
    assert code != 0 and "recorded on node a" not in err
    other, commit = new_session(), away.commit(anew=True)
    away.record(other, commit, stored=False)
    assert "object store does not have" in fetched(away, tmp_path, other)[2]
    # Everybody else is served meanwhile.
    assert tip(away, "no-such-session") == ""


def test_a_bundle_that_lies_is_refused_and_leaves_nothing(away: Elsewhere, tmp_path: Path) -> None:
    true, other = away.commit(anew=True), away.commit(anew=True)
    lie, session = away.bundle("x", other, ["origin/HEAD"]), new_session()
    before = refs(away.serve.mirror(WIDGETS))
    away.record(session, true, data=lie)
    assert "other refs" in fetched(away, tmp_path, session)[2]
    assert refs(away.serve.mirror(WIDGETS)) == before
    assert git_result("cat-file", "-e", other, cwd=away.serve.mirror(WIDGETS))[0] != 0
    assert not list(away.serve.mirror(WIDGETS).glob("objects/incoming-*"))


def test_many_that_ask_at_once_cause_one_download(away: Elsewhere, tmp_path: Path) -> None:
    session, commit = new_session(), away.commit(anew=True)
    away.record(session, commit)
    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(lambda _: fetched(away, tmp_path, session), range(20)))
    assert [code for code, _, _ in results] == [0] * 20
    assert away.serve.log().count(f"brought a turn of {session}") == 1


def test_commands_and_the_api_bring_what_they_need(away: Elsewhere, tmp_path: Path) -> None:
    session, first = new_session(), away.commit(anew=True)
    away.record(session, first, attached={"a.txt": b"attached\n"})
    second = away.commit("second.txt")
    away.record(session, second)
    shown = away.serve.cli_json("session", "show", WIDGETS, session)
    assert [turn["since_last"] for turn in shown["turns"]] == [None, None]
    assert not set(turn_refs(away).values()) & {first, second}
    stat = away.serve.cli("session", "diff", WIDGETS, session, "--turn", "2", "--stat").stdout
    assert "second.txt" in stat and "work.txt" not in stat
    assert away.serve.cli("session", "attachment", WIDGETS, session, "a.txt").stdout == "attached\n"
    other = new_session()
    away.record(other, away.commit("third.txt"))
    away.serve.cli("session", "checkout", WIDGETS, other, str(tmp_path / "out"))
    assert (tmp_path / "out" / "third.txt").exists()
    shown = away.serve.cli_json("session", "show", WIDGETS, session)
    assert shown["turns"][1]["since_last"]["files_changed"] == 1


def test_a_commit_of_another_node_is_there_for_whoever_asks_by_its_id(away: Elsewhere, tmp_path: Path) -> None:
    away.record(new_session(), commit := away.commit(anew=True))
    with urlopen(f"{away.serve.http_url}/{WIDGETS}/freshness?want={commit}", timeout=30) as answer:
        assert json.load(answer)["has"] is True
    git("init", "-q", "--bare", str(tmp_path / "guest"))
    git("fetch", "-q", f"{away.serve.git_url}/{WIDGETS}", commit, cwd=tmp_path / "guest")
