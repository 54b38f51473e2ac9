"""A private upstream's submodule is in the workspaces of exactly those who may read its repository."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.access.conftest import SETTLED, TOKEN, lock, write_secret
from tests.git.lab import Lab
from tests.support.gitutil import git, wait_until
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream
from tests.workspace.submodule_lab import SubmoduleLab, section
from tests.workspace.web import Reply, get

APP, LIB, SECRET, LATE = "acme/app", "acme/lib", "acme/secret", "acme/late"
ALL = {"lib/README", "secret/README", "late/README"}


@dataclass
class Reading:
    """A node with `APP`, whose submodules are `LIB`, `SECRET` (private) and `LATE` (not registered)."""

    serve: Serve
    upstream: HttpUpstream
    lab: SubmoduleLab
    token_file: Path

    def tar(self, token: str | None = None, query: str = "") -> Reply:
        url = f"{self.serve.http_url}/{APP}/workspace.tar{query}"
        return get(url, authorization=f"Bearer {token}") if token else get(url)

    def inside(self, token: str | None = None, query: str = "") -> set[str]:
        reply = self.tar(token, query)
        assert reply.status == 200, reply.text
        names = {name for name in reply.tar().getnames()}
        found = ALL & names
        assert {
            name.removeprefix(".git/modules/").split("/")[0] for name in names if name.startswith(".git/modules/")
        } == {name.split("/")[0] for name in found}
        return found

    def configure(self, *private: str) -> None:
        urls = [self.upstream.url(name) for name in (APP, LIB, SECRET)]
        entries = [{"url": self.upstream.url(name), "token_file": str(self.token_file)} for name in private]
        self.serve.configure(urls, refresh=SETTLED, workspace={"submodules": True}, credentials=entries)

    def token(self, repo: str) -> str:
        return str(self.serve.cli_json("token", "issue", "--repo", repo)["token"])


@pytest.fixture
def reading(tmp_path: Path) -> Iterator[Reading]:
    base = Lab(tmp_path / "lab")
    lab = SubmoduleLab(base, tmp_path / "made")
    for name in (APP, LIB, SECRET, LATE):
        lab.create(name)
    links = {name.split("/")[1]: lab.commit(name) for name in (LIB, SECRET, LATE)}
    lab.commit(APP, "".join(section(name, name, f"../{name}") for name in links), links)
    token_file = write_secret(tmp_path / "token", f"{TOKEN}\n")
    with HttpUpstream(tmp_path / "upstream") as upstream:
        for name in (APP, LIB, SECRET, LATE):
            upstream.add(name, lab.mirror(name).path)
        lock(upstream, SECRET)
        with Serve(tmp_path / "state") as serve:
            made = Reading(serve, upstream, lab, token_file)
            made.configure(SECRET)
            serve.start()
            for name in (APP, LIB, SECRET):
                serve.wait_for_repo(name)
            yield made
    base.close()


@pytest.mark.slow
def test_everybody_gets_what_they_may_read(reading: Reading) -> None:
    serve = reading.serve
    wait_until(lambda: reading.inside() == {"lib/README"}, message="the submodules that are open")
    token = reading.token(SECRET)
    assert reading.inside(token) == {"lib/README", "secret/README"}
    assert reading.inside() == {"lib/README"}
    assert reading.tar(token).headers["etag"] != reading.tar().headers["etag"]
    assert reading.inside(reading.token(SECRET), "?submodules=0") == set()
    assert reading.tar(query="?submodules=2").status == 400
    # Nothing tells the two that are not there apart, but to operators.
    [app] = [repo for repo in serve.status()["repos"] if repo["name"] == APP]
    assert [(lack["path"], lack["reason"]) for lack in app["lacks"]] == [("late", "not mirrored here")]
    assert "submodule late is empty: not mirrored here" in serve.cli("status").stdout
    # Who may read some repositories alone gets nothing else.
    only = serve.cli_json("guest", "add", "vm-1", "--token", "--only", "--repo", APP)["token"]
    assert reading.inside(only) == set()
    both = serve.cli_json("guest", "add", "vm-2", "--token", "--only", "--repo", APP, "--repo", SECRET)["token"]
    assert reading.inside(both) == {"secret/README"}
    # What was missing comes when it is registered.
    serve.cli("add-repo", reading.upstream.url(LATE))
    wait_until(lambda: reading.inside() == {"lib/README", "late/README"}, message="the submodule that came late")
    assert reading.inside(only) == set()
    # And goes with its registration, at once.
    serve.cli("remove-repo", LATE)
    assert reading.inside() == {"lib/README"}


@pytest.mark.slow
def test_what_becomes_private_is_in_no_tar_from_then_on(reading: Reading) -> None:
    wait_until(lambda: reading.inside() == {"lib/README"}, message="the submodules that are open")
    before = reading.tar().headers["etag"]
    reading.configure(SECRET, LIB)
    reading.serve.reload()
    wait_until(
        lambda: any(repo["name"] == LIB and repo["private"] for repo in reading.serve.status()["repos"]),
        message="the repository to be private",
    )
    assert reading.inside() == set()
    assert get(f"{reading.serve.http_url}/{APP}/workspace.tar", if_none_match=before).status == 200
    assert reading.inside(reading.token(LIB)) == {"lib/README"}
    # A tar that an earlier `serve` built is looked at in the same way.
    reading.serve.terminate()
    reading.configure(SECRET)
    reading.serve.start()
    wait_until(lambda: reading.tar().status == 200, message="a tar after the restart")


@pytest.mark.slow
def test_a_commit_that_is_missing_comes_with_a_refresh(reading: Reading) -> None:
    wait_until(lambda: reading.inside() == {"lib/README"}, message="the submodules that are open")
    # The mirror of the submodule has not seen its new commit when the repository's tip asks for it.
    new = reading.lab.commit(LIB, None, None, more="more\n")
    reading.lab.commit(APP, section("lib", "lib", "../lib"), {"lib": new})
    for name in (LIB, APP):
        pushed = reading.lab.mirror(name).path
        git("push", "-q", str(reading.upstream.path(name)), "main", cwd=pushed)
    reading.serve.here("refresh", APP)
    wait_until(
        lambda: "lib/more" in reading.tar().tar().getnames(), message="the commit, by the refresh that was asked for"
    )
