"""Many guests have drives of one repository mounted, whatever the node does with the files meanwhile."""

from __future__ import annotations

import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.drives import mounted, needs_mount
from tests.support.gitutil import git
from tests.workspace.disk.disk_lab import DiskLab, clone, fast_import, files_of, is_untouched

GUESTS = 50


@pytest.mark.slow
@needs_mount
def test_what_happens_to_the_files_harms_no_guest_that_has_them(lab: DiskLab, tmp_path: Path) -> None:
    """Three tips, 50 guests: the tips are replaced, their images removed, the generation left behind and deleted."""
    rng = random.Random(8)
    images, expected = [], []
    for number in range(3):
        fast_import(lab.bare, [{b"f%d" % rng.randrange(40): (b"100644", rng.randbytes(20_000)) for _ in range(30)}])
        images.append(lab.build())
        expected.append(files_of(clone(lab.bare, tmp_path / f"clone{number}", images[-1].commit)))
    assert len({lab.place.data(image) for image in images}) == 1
    with ExitStack() as guests:
        tops = []
        for number in range(GUESTS):
            image = images[number % 3]
            tops.append(guests.enter_context(mounted(lab.place.tree(image), lab.place.data(image))))

        def look(number: int) -> bool:
            top = tops[number]
            return files_of(top) == expected[number % 3] and is_untouched(top)

        def all_is_well() -> bool:
            with ThreadPoolExecutor(4) as threads:
                return all(threads.map(look, range(GUESTS)))

        # The next tip grows the data drive that all of them have.
        fast_import(lab.bare, [{b"more": (b"100644", rng.randbytes(200_000))}])
        lab.build()
        assert all_is_well()
        for image in images[:2]:
            lab.place.remove(image)
        git("update-ref", "refs/heads/main", images[0].commit, cwd=lab.bare)
        fast_import(lab.bare, [{b"rewritten": (b"100644", b"1\n")}])
        assert lab.build().generation > images[0].generation
        lab.place.remove_generation(images[0].generation)
        assert all_is_well()
        shutil.rmtree(lab.directory)
        assert all_is_well()
