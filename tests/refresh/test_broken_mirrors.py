"""A mirror that is damaged on disk is healed, followed again, and affects no other repository."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import WIDGETS, ServeFactory
from tests.refresh.node import repo_status
from tests.support.generate import add_commit
from tests.support.gitutil import remote_refs, wait_until
from tests.support.upstream import HttpUpstream

OTHER = "acme/other"


def _config_is_a_directory(mirror: Path) -> None:
    (mirror / "config").unlink()
    (mirror / "config" / "x").mkdir(parents=True)


def _config_is_garbage(mirror: Path) -> None:
    (mirror / "config").write_bytes(b"\xff\xfe\0garbage")


def _head_is_garbage(mirror: Path) -> None:
    (mirror / "HEAD").write_bytes(b"\0\xff")


def _objects_are_gone(mirror: Path) -> None:
    shutil.rmtree(mirror / "objects")


def _is_a_file(mirror: Path) -> None:
    shutil.rmtree(mirror)
    mirror.write_text("x")


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", [_config_is_a_directory, _config_is_garbage, _head_is_garbage, _objects_are_gone, _is_a_file]
)
def test_a_damaged_mirror_stops_neither_serve_nor_the_others(
    serve_factory: ServeFactory,
    upstream: HttpUpstream,
    generated_bare: Path,
    damage: Callable[[Path], None],
) -> None:
    """serve starts, heals and follows the one, and follows and serves the other."""
    upstream.add(OTHER, generated_bare)
    serve = serve_factory(repos=[upstream.url(WIDGETS), upstream.url(OTHER)], refresh={"interval": "1s"}).start()
    for name in (WIDGETS, OTHER):
        serve.wait_for_repo(name)
    serve.kill()
    damage(serve.mirror(WIDGETS))
    serve.start()
    tip = add_commit(upstream.path(OTHER), "main", {"x": "1\n"})
    serve.wait_for_ref(OTHER, "refs/heads/main", tip)
    # Guests are shown it once the refresh has ended, a moment after the ref moved.
    wait_until(lambda: remote_refs(f"{serve.git_url}/{OTHER}")["HEAD"] == tip, message="guests see the new tip")
    tip = add_commit(upstream.path(WIDGETS), "main", {"x": "1\n"})
    serve.wait_for_ref(WIDGETS, "refs/heads/main", tip)

    def is_well() -> bool:
        status = repo_status(serve, WIDGETS)
        # What healed it may end before the refresh that takes the error away.
        return status["state"] == "fresh" and status["last_error"] is None

    wait_until(is_well, message="the healed one is fresh", interval=0.2)
    assert "Traceback" not in serve.log()
    assert repo_status(serve, OTHER)["state"] == "fresh"
    assert serve.terminate() == 0
