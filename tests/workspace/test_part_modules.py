"""What parts of a branch have of submodules, where nobody asks for the whole branch."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.core.config.settings import WorkspaceConfig
from appliance.core.models import Repo
from appliance.core.workspace.module_finder import in_part
from appliance.core.workspace.shape import WantedShape
from appliance.core.workspace.submodules import Submodule
from tests.support.generate import add_commit
from tests.support.gitutil import git
from tests.workspace.lfs_room import LfsRoom
from tests.workspace.module_lab import link, section


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ((), ["a", "a/in/b", "src/c", "src/c/d", "src/x/e", "lib/f", "lib/f/src/g"]),
        (("src/x",), ["a", "a/in/b", "src/c", "src/c/d", "src/x/e"]),
        (("src/c",), ["a", "a/in/b", "src/c", "src/c/d"]),
        (("other",), ["a", "a/in/b"]),
    ],
)
def test_a_part_has_the_submodules_where_it_has_files(only: tuple[str, ...], expected: list[str]) -> None:
    """As git has gitlinks in a cone: at the top, in each directory above one of the part, and all below; whole ones."""
    paths = ["a", "a/in/b", "src/c", "src/c/d", "src/x/e", "lib/f", "lib/f/src/g"]
    repo = Repo(1, "acme/m", "https://example.com/acme/m", None, "cli", None, True, 0.0)
    modules = [Submodule(path, f".git/modules/{path}", path, repo.url, "1" * 40, repo) for path in paths]
    assert [each.path for each in in_part(modules, only)] == expected


def test_a_branch_of_which_guests_have_parts_alone_learns_of_new_submodules(tmp_path: Path) -> None:
    """Or they would be looked for by the tip of long ago, and a guest get those of nobody or wait in vain."""
    room = LfsRoom(tmp_path)
    room.settings = WorkspaceConfig(submodules=True)
    add_commit(room.bare, "main", {"src/a.txt": "a\n"})
    git("branch", "side", "main", cwd=room.bare)
    wanted = WantedShape(only=("src",), submodules=True)

    async def ask() -> list[str]:
        await room.snapshots.get(room.repo, "side", wanted)
        link(room.bare, section("lib", "src/lib", "https://example.com/lib"), {"src/lib": "1" * 40}, "side")
        room.snapshots.refresh(room.repo)
        [branch] = [each for each in room.snapshots.kept.repository(room.repo).branches.values() if each.name == "side"]
        assert branch.building_parts is not None
        await branch.building_parts
        lacks = [each["path"] for each in room.snapshots.modules.lacks(room.repo, "side")]
        await room.snapshots.stop()
        return lacks

    assert room.lab.run(ask()) == ["src/lib"]
    room.lab.close()
