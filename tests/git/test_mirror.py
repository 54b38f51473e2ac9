"""One mirror: what is read from git's output, and what a failure or a kill leaves behind."""

from __future__ import annotations

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.errors import GitmirrorError, UsageError
from appliance.core.git import tls_trust as trust
from appliance.core.git.command import GitError
from appliance.core.git.ref_sets import changes_between, parse_ls_remote, refs_in_the_way
from appliance.core.models import RefChange
from appliance.core.text import storable
from tests.git.lab import NAME, Lab, followed
from tests.support.generate import force_push
from tests.support.gitutil import fsck, git, refs
from tests.support.tls import TlsFront, make_certificate
from tests.support.upstream import HttpUpstream

A, B = "a" * 40, "b" * 40


def test_ls_remote_is_read_without_peeled_tags_and_other_refs() -> None:
    """Branches and tags by name, HEAD's branch; nothing else."""
    text = (
        f"ref: refs/heads/trunk\tHEAD\n{A}\tHEAD\n{A}\trefs/heads/trunk\n{B}\trefs/pull/1/head\n"
        f"{B}\trefs/tags/v1\n{A}\trefs/tags/v1^{{}}\n{A}\trefs/heads/with\ttab\n"
    )
    remote = parse_ls_remote(text)
    assert remote.head == "refs/heads/trunk"
    assert remote.refs == {"refs/heads/trunk": A, "refs/tags/v1": B, "refs/heads/with\ttab": A}


@pytest.mark.parametrize("text", ["", f"{A}\tHEAD\n", f"ref: refs/remotes/x\tHEAD\n{A}\tHEAD\n"])
def test_an_upstream_without_a_default_branch(text: str) -> None:
    """Empty, detached, or on something that is no branch: no HEAD to follow."""
    assert parse_ls_remote(text).head is None


def test_only_what_differs_is_a_change() -> None:
    """New, moved, deleted; in order of name."""
    before = {"refs/heads/a": A, "refs/heads/b": A, "refs/heads/c": A}
    after = {"refs/heads/d": B, "refs/heads/b": B, "refs/heads/a": A}
    assert changes_between(before, after) == (
        RefChange("refs/heads/b", A, B),
        RefChange("refs/heads/c", A, None),
        RefChange("refs/heads/d", None, B),
    )


_NAMES = st.lists(
    st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=3).map(
        lambda parts: "refs/heads/" + "/".join(parts)
    ),
    unique=True,
    max_size=8,
)


def _can_live_together(names: list[str]) -> bool:
    return not any(other.startswith(f"{name}/") for name in names for other in names)


@given(_NAMES.filter(_can_live_together), _NAMES.filter(_can_live_together))
def test_whoever_is_in_the_way_goes_and_nobody_else(local: list[str], remote: list[str]) -> None:
    """After those are deleted every upstream ref can be created; none was deleted that could have stayed."""
    gone = refs_in_the_way(dict.fromkeys(remote, A), dict.fromkeys(local, B))
    left = [name for name in local if name not in gone]
    assert _can_live_together([*left, *remote])
    for name in gone:
        assert name not in remote
        assert not _can_live_together([name, *remote])


@given(st.binary(max_size=20).map(os.fsdecode))
def test_any_name_can_be_shown(name: str) -> None:
    """What is stored or printed is text, and names that are text are themselves."""
    text = storable(name)
    text.encode()
    if not any("\udc80" <= char <= "\udcff" for char in name):
        assert text == name


def test_a_failed_first_clone_leaves_no_mirror(lab: Lab, tmp_path: Path) -> None:
    """A directory with the mirror's name is never half a mirror, and the next try starts from scratch."""
    repo = lab.repo(tmp_path / "nothing.git")
    with pytest.raises(GitError, match="does not appear to be a git repository"):
        lab.refresh(repo)
    assert not lab.mirror().path.exists()


def test_a_half_clone_in_the_way_is_thrown_away(lab: Lab, widgets_bare: Path) -> None:
    """A clone that a kill left unfinished is no obstacle to the next."""
    growing = lab.layout.incoming(NAME)
    (growing / "objects" / "pack").mkdir(parents=True)
    (growing / "HEAD.lock").touch()
    (growing / "objects" / "pack" / "tmp_pack_x").write_bytes(b"half")
    lab.refresh(lab.repo(widgets_bare))
    assert not growing.exists()
    assert followed(lab.mirror().path) == followed(widgets_bare)
    assert not list(lab.mirror().path.glob("objects/pack/tmp_*"))


def test_a_fetch_moves_all_refs_or_none(lab: Lab, widgets_bare: Path) -> None:
    """A ref that cannot be locked leaves every other where it was; the next refresh moves them all."""
    repo = lab.repo(widgets_bare)
    lab.refresh(repo)
    mirror = lab.mirror().path
    before = followed(mirror)
    for branch in ("main", "develop", "feature/search"):
        force_push(widgets_bare, branch)
    lock = mirror / "refs" / "heads" / "develop.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    with pytest.raises(GitmirrorError, match="cannot lock ref"):
        lab.refresh(repo)
    assert followed(mirror) == before
    lock.unlink()
    lab.refresh(repo)
    assert followed(mirror) == followed(widgets_bare)


def test_a_refresh_has_a_deadline(lab: Lab, widgets_bare: Path, tmp_path: Path) -> None:
    """A refresh that misses its deadline fails with that reason and leaves no process."""
    hung = tmp_path / "hung"
    # `file://` makes git run upload-pack, and that waits for a config that nobody ever writes to.
    os.mkfifo(hung)
    git("config", "include.path", str(hung), cwd=widgets_bare)
    lab.layout.mirror(NAME).parent.mkdir(parents=True)
    with pytest.raises(GitError, match=r"longer than 0\.5s"):
        lab.refresh(lab.repo(f"file://{widgets_bare}"), timeout=0.5)
    assert lab.running == 0
    assert not list(lab.layout.children.iterdir())


def test_progress_of_a_first_clone_is_told(lab: Lab, widgets_bare: Path) -> None:
    """An observer of a clone gets git's own progress lines, one by one."""
    lines: list[str] = []
    lab.refresh(lab.repo(f"file://{widgets_bare}"), on_progress=lines.append)
    assert any("Receiving objects: 100%" in line for line in lines)
    assert not any("\r" in line or "\n" in line for line in lines)


@pytest.mark.parametrize("url", ["ext::sh -c id", "ssh://host/o/r", "--upload-pack=id", "https://u:p@host/o/r"])
def test_a_url_that_is_not_allowed_is_not_fetched_either(lab: Lab, url: str) -> None:
    """The registry is not trusted: what it holds is checked again before git sees it."""
    with pytest.raises(UsageError):
        lab.refresh(lab.repo(url))
    assert not lab.layout.incoming(NAME).exists()


def test_leftovers_of_killed_git_are_removed_and_nothing_else(lab: Lab, widgets_bare: Path) -> None:
    """Locks, quarantines and half-written packs go; packs, refs and a keep that somebody else set stay."""
    lab.refresh(lab.repo(widgets_bare))
    mirror = lab.mirror().path
    pack = next((mirror / "objects" / "pack").glob("*.pack"))
    theirs = pack.with_suffix(".keep")
    theirs.write_text("do not repack, says the operator\n")
    left = [
        "HEAD.lock",
        "packed-refs.lock",
        "config.lock",
        "shallow.lock",
        "refs/heads/main.lock",
        "refs/agents/s1.lock",
        "refs/gitmirror/anchors/x.lock",
        "objects/pack/multi-pack-index.lock",
        "objects/info/commit-graph.lock",
        "objects/info/commit-graphs/commit-graph-chain.lock",
        "objects/info/commit-graphs/tmp_graph_AbCdEf",
        "objects/pack/tmp_pack_AbCdEf",
        "objects/pack/tmp_idx_AbCdEf",
        "objects/pack/.tmp-1234-pack-x.pack",
        "objects/ab/tmp_obj_AbCdEf",
        "objects/tmp_objdir-incoming-AbCdEf/pack/tmp_pack_x",
        "objects/incoming-AbCdEf/ab/x",
        "shallow_AbCdEf",
        "info/refs_AbCdEf",
        "objects/info/packs_AbCdEf",
    ]
    for name in left:
        (mirror / name).parent.mkdir(parents=True, exist_ok=True)
        (mirror / name).write_text("x")
    transfer = mirror / "objects" / "pack" / "pack-1234.keep"
    transfer.write_text("receive-pack 1234 on node\n")
    before = refs(mirror)
    removed = lab.mirror().remove_leftovers()
    assert len(removed) == len(left) + 1
    assert not [name for name in left if (mirror / name).exists()] and not transfer.exists()
    assert theirs.exists() and refs(mirror) == before
    fsck(mirror)
    assert lab.mirror().remove_leftovers() == []


def test_a_branch_called_lock_is_no_leftover(lab: Lab, widgets_bare: Path) -> None:
    """Only files that git uses as locks are removed: refs cannot end in `.lock`, directories of refs can contain it."""
    git("update-ref", "refs/heads/a.lockx/b", refs(widgets_bare)["refs/heads/main"], cwd=widgets_bare)
    lab.refresh(lab.repo(widgets_bare))
    assert lab.mirror().remove_leftovers() == []
    assert "refs/heads/a.lockx/b" in refs(lab.mirror().path)


def test_a_discarded_mirror_is_gone_at_once(lab: Lab, widgets_bare: Path) -> None:
    """Purging takes it out of its place before it deletes; a second time there is nothing to do."""
    lab.refresh(lab.repo(widgets_bare))
    lab.mirror().discard()
    assert list(lab.mirror().path.parent.iterdir()) == []
    lab.mirror().discard()


def test_the_systems_authorities_are_trusted_and_read_once(
    tmp_path: Path, generated_bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """git reads one file, not the directory with the same certificates; the environment can name others."""
    right, wrong = make_certificate(tmp_path, "right"), make_certificate(tmp_path, "wrong")
    monkeypatch.setattr(trust, "AUTHORITIES", right.cert)
    for name in trust.OWN_AUTHORITIES:
        monkeypatch.delenv(name, raising=False)
    with HttpUpstream(tmp_path / "upstream") as upstream, TlsFront(upstream.port, right) as front:
        upstream.add(NAME, generated_bare)
        lab = Lab(tmp_path / "state")
        try:
            assert git("config", "--file", str(lab.layout.git_config), "http.sslCAPath") == str(lab.layout.home)
            assert lab.refresh(lab.repo(front.url(NAME))).tip == refs(generated_bare)["refs/heads/main"]
            front.certificate = wrong
            with pytest.raises(GitError, match="certificate"):
                lab.refresh(lab.repo(front.url(NAME)))
        finally:
            lab.close()
    for name in trust.OWN_AUTHORITIES:
        assert trust.trust_config({name: "/x"}, nothing=tmp_path) == ""
    right.cert.unlink()
    assert trust.trust_config({}, nothing=tmp_path) == ""


class _Blank(BaseHTTPRequestHandler):
    """The response of a proxy whose server is down: 200 and an empty body."""

    def do_GET(self) -> None:
        """An empty page for every path."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quietly."""


@pytest.mark.slow
def test_a_blank_page_empties_no_mirror(lab: Lab, generated_bare: Path, tmp_path: Path) -> None:
    """git reads a blank page as a repository without refs; only a git server's empty list counts as one."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Blank) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        blank = lab.repo(f"http://127.0.0.1:{server.server_port}/{NAME}")
        try:
            with pytest.raises(GitError, match="no git server"):
                lab.refresh(blank)
            assert not lab.mirror().exists()
            lab.refresh(lab.repo(generated_bare))
            before = followed(lab.mirror().path)
            with pytest.raises(GitError, match="no git server"):
                lab.refresh(blank)
            assert followed(lab.mirror().path) == before != {}
        finally:
            server.shutdown()
    with HttpUpstream(tmp_path / "upstream") as upstream:
        upstream.add(NAME)
        assert lab.refresh(lab.repo(upstream.url(NAME))).refs == 0


def test_a_mirror_keeps_its_refs_in_files_whatever_git_does_by_default(lab: Lab) -> None:
    """Who looks at refs looks at files; a git that makes another format when it is not told is told."""
    with lab.layout.git_config.open("a", encoding="utf-8") as config:
        config.write("[init]\n\tdefaultRefFormat = reftable\n\tdefaultObjectFormat = sha256\n")
    mirror = lab.mirror()
    lab.run(mirror.initialise("https://example.org/acme/widgets"))
    assert not (mirror.path / "reftable").exists()
    assert lab.run(mirror.local_refs()) == {}
    assert git("rev-parse", "--show-object-format", cwd=mirror.path) == "sha1"
