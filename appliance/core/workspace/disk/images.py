"""The files of one repository's disks.

Below `disks/OWNER/REPO` each generation is a directory with a number for its name, which never comes back. It holds one
blob file (`data`), the catalogue of that file (`catalogue.db`), and `images/`, with one tree drive and one description
for each image. All images of a generation share its blob file. A new generation is begun when the blob file must not be
used further, for example because upstream dropped a commit that is in it, or is mostly unused (docs/decisions/034).
Images of older generations are only kept while they are leased.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Protocol

LAYOUT_VERSION = 3
"""Increased when an image of the same commit would come out differently. Images of another version are not used."""
GONE = ".gone-"
"""Name prefix of a generation being removed."""
BEGUN = ".new"
"""Name suffix of a generation that has no image yet."""
SCRATCH = "scratch"
"""The directory of a build for what it needs only while it runs."""


class DiskForm(StrEnum):
    """The form of an image: EROFS on two drives, EROFS on one, or ext4 on one."""

    EROFS = "erofs"
    SINGLE = "erofs-single"
    EXT4 = "ext4"


class ImageKey(Protocol):
    """What identifies an image: the image itself, or a lease of it."""

    @property
    def generation(self) -> int:
        """The number of its generation."""
        ...

    @property
    def name(self) -> str:
        """The name of its tree drive."""
        ...

    @property
    def form(self) -> str:
        """A `DiskForm`, or its value."""
        ...


@dataclass(frozen=True)
class DiskImage:
    """A complete image: the `commit` of `branch`, with `history` "full" or "tip".

    `url` is the upstream, and `visibility` is "open" or "private". `size` is the size of the tree drive in bytes, and
    `data_size` how many bytes of the data drive it needs. `sha256` is of the tree drive, in hex. `made_at` is in Unix
    seconds. Images of one `line` may share a data drive (`DiskOrder.line`).
    """

    repo: str
    url: str
    branch: str
    commit: str
    form: DiskForm
    history: str
    visibility: str
    generation: int
    name: str
    size: int
    data_size: int
    sha256: str
    made_at: float
    line: str = ""
    version: int = LAYOUT_VERSION


class DiskPlace:
    """The drives of one repository, below `directory`. Every method raises OSError."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def generation(self, number: int) -> Path:
        """The directory of a generation."""
        return self.directory / str(number)

    def generations(self) -> list[int]:
        """The numbers of all generations, the oldest first. New images are built in the last one."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(int(entry.name) for entry in self.directory.iterdir() if entry.name.isdecimal())
        return []

    def next_generation(self) -> int:
        """The number of a generation that is about to begin: higher than all that are there, and never used before.

        It is of the clock, in milliseconds, because the directory may have been emptied or purged since the last one.
        A platform may still have the path of a drive from then, and must not find another one there.
        """
        return max([number + 1 for number in self.generations()] + [time.time_ns() // 1_000_000])

    def tree(self, image: ImageKey) -> Path:
        """The tree drive of an image. Its path does not change as long as it exists."""
        return self.generation(image.generation) / "images" / image.name

    def data(self, image: ImageKey) -> Path | None:
        """The data drive of an image, or None for a form without one."""
        return self.generation(image.generation) / "data" if image.form == DiskForm.EROFS else None

    def images(self) -> list[DiskImage]:
        """All complete images of this layout version, the oldest first."""
        found = [image for number in self.generations() for image in self._described(number)]
        return sorted(found, key=lambda image: (image.made_at, image.name))

    def _described(self, number: int) -> Iterator[DiskImage]:
        for path in (self.generation(number) / "images").glob("*.json"):
            # An error of `json` is a ValueError, but for one: what is nested too deeply is a RecursionError.
            with contextlib.suppress(OSError, ValueError, RecursionError):
                image = _image_of(json.loads(path.read_text(encoding="utf-8")))
                is_own = (image.version, image.generation) == (LAYOUT_VERSION, number)
                # A damaged name would lead to another file, or out of the directory.
                if is_own and self.description(image) == path and self.tree(image).exists():
                    yield image

    def describe(self, image: DiskImage) -> str:
        """The text of an image's description."""
        return json.dumps(asdict(image), indent=1) + "\n"

    def description(self, image: ImageKey) -> Path:
        """The file with an image's description. It is written last, so an image that has one is complete."""
        return self.tree(image).with_suffix(".json")

    def remove(self, image: DiskImage) -> None:
        """Removes an image. A guest that has it mounted keeps it, because its VMM has the file open."""
        self.description(image).unlink(missing_ok=True)
        self.tree(image).unlink(missing_ok=True)

    def remove_generation(self, number: int) -> None:
        """Removes a generation with everything in it."""
        # Renamed first, so that a kill leaves no image without its blob file. `sweep` removes the renamed directory.
        gone = self.directory / f"{GONE}{number}-{secrets.token_hex(4)}"
        self.generation(number).rename(gone)
        shutil.rmtree(gone)


def _image_of(document: object) -> DiskImage:
    """The image that a description, which may be damaged, has in it. Raises ValueError."""
    if not isinstance(document, dict) or document.keys() != _KINDS.keys():
        raise ValueError("a description has other keys")
    for key, value in document.items():
        # Exactly of its kind, because True is an int. No number of an image is below 0, and NaN is not above it.
        if type(value) not in _KINDS[key] or (not isinstance(value, str) and not 0 <= value < _MOST):
            raise ValueError(f"{key} of a description is {value!r:.100}")
    return DiskImage(**document | {"form": DiskForm(document["form"])})


_TEXT, _WHOLE, _NUMBER = (str,), (int,), (int, float)
_KINDS: dict[str, tuple[type, ...]] = {
    field.name: {"int": _WHOLE, "float": _NUMBER}.get(str(field.type), _TEXT) for field in fields(DiskImage)
}
"""The types that each value of a description may have."""
_MOST = 2**63
"""More than any number of an image; as many bytes are more than a file may have."""
