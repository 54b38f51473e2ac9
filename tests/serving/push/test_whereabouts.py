"""Which mirror the child of a push is in, as real processes show it."""

from __future__ import annotations

from pathlib import Path

from appliance.core.process.children import Child
from appliance.core.serving.push.whereabouts import ENDED, REPLACED, why_not_there
from tests.git.lab import Lab


def test_only_a_child_in_the_mirror_may_write(tmp_path: Path) -> None:
    """Not one in a directory that was exchanged or removed, and none that cannot be asked any more."""
    lab, mirror, old = Lab(tmp_path / "state"), tmp_path / "mirror", tmp_path / "old"

    def start(cwd: Path | str) -> Child:
        return lab.git.children.start(["sleep", "60"], env={"PATH": "/usr/bin:/bin"}, cwd=cwd)

    async def test() -> None:
        mirror.mkdir()
        inside, before = start(mirror), start("/")
        assert why_not_there(inside, mirror, may_enter=False) is None
        assert why_not_there(before, mirror, may_enter=True) is None
        assert why_not_there(before, mirror, may_enter=False) == REPLACED
        mirror.rename(old)
        assert why_not_there(inside, mirror, may_enter=True) == REPLACED
        assert why_not_there(before, mirror, may_enter=True) == REPLACED
        mirror.mkdir()
        assert why_not_there(inside, mirror, may_enter=True) == REPLACED
        assert why_not_there(inside, old, may_enter=True) is None
        old.rmdir()
        assert why_not_there(inside, mirror, may_enter=True) == REPLACED
        for child in (inside, before):
            await child.end()
            assert why_not_there(child, mirror, may_enter=True) == ENDED

    lab.run(test())
    lab.close()
