"""Drives that all tests of a module share, made by other programs than gitmirror."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.core.workspace.guest_kit import render_kit
from tests.conftest import WIDGETS
from tests.support.generate import copy_repository
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream
from tests.workspace.conftest import SETTLED, Guest, Node
from tests.workspace.disk.drives_lab import Drives, Machine, make_drives, plant_data_header

UPSTREAM = "https://github.com/acme/widgets"

MakeDrives = Callable[..., Drives]


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine of this test alone."""
    made = Machine()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def planted_bare(generated_bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An upstream from whose `main` two drives can be made."""
    bare = copy_repository(generated_bare, tmp_path_factory.mktemp("planted") / "bare.git")
    plant_data_header(bare)
    return bare


@pytest.fixture(scope="module")
def made(planted_bare: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeDrives:
    """Return the drives of `main` in a form and with a history; each is made once."""
    known: dict[tuple[str, str], Drives] = {}

    def make(form: str = "erofs", history: str = "full") -> Drives:
        if (form, history) not in known:
            directory = tmp_path_factory.mktemp("drives") / form
            known[form, history] = make_drives(
                planted_bare, directory, repository=WIDGETS, url=UPSTREAM, form=form, history=history
            )
        return known[form, history]

    return make


@pytest.fixture
def lone_guest(machine: Machine, planted_bare: Path, tmp_path: Path) -> Guest:
    """A guest that reaches no mirror, only the upstream, with no drives."""
    home = tmp_path / "home"
    home.mkdir()
    kit = home / "guest.sh"
    kit.write_text(render_kit(None, None, []))
    env = {"GITMIRROR_DEADLINE": "20", "GITMIRROR_DRIVES": "", "GITMIRROR_UPSTREAM": f"file://{planted_bare}"}
    return machine.guest(Guest(home, kit, "dash", None, env))


@pytest.fixture(scope="module")
def disk_node(planted_bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node that mirrors the repository of the drives; none of the tests that share it may move a branch."""
    base = tmp_path_factory.mktemp("node")
    with HttpUpstream(base / "upstream") as upstream:
        upstream.add(WIDGETS, planted_bare)
        with Serve(base / "state", repos=[upstream.url(WIDGETS)], refresh=SETTLED).start() as serve:
            serve.wait_for_repo(WIDGETS)
            yield Node(serve, upstream)
