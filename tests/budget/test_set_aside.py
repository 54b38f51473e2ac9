"""What went is not built again by itself: not by a moved branch, nor by a restart; a guest that asks has it built."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import WIDGETS
from tests.support.gitutil import commit_files, git, wait_until
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream
from tests.workspace.web import get

MIB = 2**20


@pytest.mark.slow
def test_a_snapshot_that_went(tmp_path: Path, generated_bare: Path) -> None:
    """It is set aside until it is asked for; asked for in vain, it is refused for a while, and guests clone."""
    with HttpUpstream(tmp_path / "upstream") as upstream:
        upstream.add(WIDGETS, generated_bare)
        settings = {"interval": "1h", "stale_after": "1d"}
        with Serve(tmp_path / "state", repos=[upstream.url(WIDGETS)], refresh=settings).start() as serve:
            serve.keep_ports()
            serve.wait_for_repo(WIDGETS)
            url = f"{serve.http_url}/{WIDGETS}/workspace.tar"
            tars = serve.state / "workspaces" / WIDGETS

            def is_built() -> bool:
                return any(tars.glob("*/*/*.tar"))

            wait_until(is_built, message="the snapshot is built at the start")

            def with_budget(budget: str) -> None:
                serve.configure([upstream.url(WIDGETS)], refresh=settings, storage={"budget": budget})
                serve.reload()

            with_budget("1KiB")
            wait_until(lambda: not is_built(), message=f"the snapshot goes\n{serve.log()}")
            with_budget("1GiB")
            work = tmp_path / "work"
            git("clone", "--quiet", upstream.url(WIDGETS), str(work))
            commit_files(work, {"more.txt": "more\n"}, "more")
            git("push", "--quiet", "origin", "HEAD:main", cwd=work)
            serve.here("refresh", WIDGETS)
            serve.restart()
            serve.wait_for_repo(WIDGETS)
            # Whatever is built in the background for this tip is built by now.
            wait_until(lambda: serve.status()["warmed"][WIDGETS]["answers"], message="the new tip is warmed")
            assert not is_built()

            assert get(url).status == 200 and is_built()
            with_budget("1KiB")
            wait_until(lambda: not is_built(), message="the snapshot goes again")
            with_budget("1GiB")
            wait_until(lambda: serve.status()["storage"]["over"] == 0, message="there is room again")
            refused = get(url)
            assert refused.status == 404, refused
            assert b"no room for the snapshot of main" in refused.body
            serve.clone(tmp_path / "clone", WIDGETS, "--depth=1")
