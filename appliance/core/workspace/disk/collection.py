"""Which images and generations to remove: those that can no longer be leased, and the oldest beyond the budget."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from appliance.core.names import is_repo_name
from appliance.core.process.disk import size_below, size_on_disk
from appliance.core.workspace.disk.images import BEGUN, GONE, SCRATCH, DiskImage, DiskPlace, ImageKey

MOST_SPARE = 16
"""Images of a repository that are kept for another request, beside the tips of followed branches and what is leased."""
SPARE_FOR = 86400.0
"""Seconds after which such an image goes. Building it again costs little, because its blob file is there."""

Key = tuple[int, str]
"""An image within a repository: its generation and its name."""


@dataclass(frozen=True)
class Stock:
    """What the repository `name` has on disk: its images, and the bytes of each generation and each image.

    The images in `useless` are never leased again, because their branch or their upstream is gone. Those in `current`
    are removed last, because the next guest will need them. Those in `leased` are in use. Neither `useless` nor
    `current` is known unless the stock `is_judged`.
    """

    name: str
    sizes: Mapping[int, int] = field(default_factory=dict)
    images: Mapping[DiskImage, int] = field(default_factory=dict)
    leased: Collection[Key] = frozenset()
    useless: Collection[DiskImage] = frozenset()
    current: Collection[DiskImage] = frozenset()
    asked: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """When a disk of a branch was last leased in a form, in Unix seconds."""
    is_judged: bool = False

    @property
    def bytes(self) -> int:
        """The bytes of all generations."""
        return sum(self.sizes.values())

    def used_at(self, image: DiskImage) -> float:
        """When an image was made, or the last one of its branch was leased: the later of the two."""
        last = self.asked.get((image.branch, image.form), 0.0) if image in self.current else 0.0
        return max(image.made_at, last)


@dataclass
class Removal:
    """What to remove from one repository.

    `crowded` are those of `images` that are current and go for the budget alone.
    """

    images: list[DiskImage] = field(default_factory=list)
    generations: list[int] = field(default_factory=list)
    crowded: list[DiskImage] = field(default_factory=list)
    needed: int = 0
    """The bytes that all disks would take with what is `crowded`."""


def take_stock(name: str, place: DiskPlace, leased: Collection[Key]) -> Stock:
    """Reads from the file system what a repository has. Raises OSError."""
    sizes = {number: size_below(place.generation(number)) for number in place.generations()}
    images = {
        image: size_on_disk(place.tree(image)) + size_on_disk(place.description(image)) for image in place.images()
    }
    return Stock(name, sizes, images, leased)


def names_on_disk(disks: Path) -> Iterator[str]:
    """The names of the repositories that have disks, registered or not. Leaves out what cannot be read."""
    for path in sorted(disks.glob("*/*")):
        name = f"{path.parent.name}/{path.name}"
        if is_repo_name(name) and path.is_dir():
            yield name


def plan_removals(stocks: Sequence[Stock], budget: int, now: float) -> tuple[dict[str, Removal], int]:
    """What to remove from each repository at Unix time `now`, and the bytes that all disks take afterwards.

    Removes a generation that is not the newest of its line, or has no image, when none of it is leased. Removes an
    image that is useless, or neither current nor leased and older than SPARE_FOR or the MOST_SPARE newest of its kind.
    Beyond `budget` bytes, it removes the oldest images, and with the last image of a generation its blob file. It
    removes nothing that is leased.
    """
    removals = {stock.name: Removal() for stock in stocks}
    total = sum(stock.bytes for stock in stocks)
    candidates: list[tuple[bool, float, Stock, DiskImage]] = []
    left: Counter[tuple[str, int]] = Counter()
    rest: dict[tuple[str, int], int] = {}
    for stock in stocks:
        held = {generation for generation, _ in stock.leased}
        newest: dict[str, int] = {}
        for image in stock.images:
            newest[image.line] = max(image.generation, newest.get(image.line, 0))
        doomed = {*stock.useless, *_too_old(stock, now)}
        for number, size in stock.sizes.items():
            mine = [image for image in stock.images if image.generation == number]
            if number not in held and not any(newest[image.line] == number for image in mine):
                removals[stock.name].generations.append(number)
                total -= size
                continue
            free = [image for image in mine if (number, image.name) not in stock.leased]
            # Leases count even if this version cannot read their images.
            left[stock.name, number] = len(free) + sum(generation == number for generation, _ in stock.leased)
            rest[stock.name, number] = size - sum(stock.images[image] for image in free)
            for image in free:
                if number != newest[image.line] or image in doomed:
                    total -= _remove(stock, image, removals, left, rest)
                else:
                    candidates.append((image in stock.current, stock.used_at(image), stock, image))
    needed = 0
    for _, _, stock, image in sorted(candidates, key=lambda each: each[:2]):
        if total <= budget:
            break
        if image in stock.current:
            removals[stock.name].needed = needed = needed or total
            removals[stock.name].crowded.append(image)
        total -= _remove(stock, image, removals, left, rest)
    return removals, total


def _too_old(stock: Stock, now: float) -> Iterator[DiskImage]:
    """The images of old tips that nobody has leased and that are not kept for another request."""
    if stock.is_judged:
        free = (image for image in stock.images if (image.generation, image.name) not in stock.leased)
        spare = sorted((image for image in free if image not in stock.current), key=lambda image: -image.made_at)
        for place, image in enumerate(spare):
            if place >= MOST_SPARE or now - image.made_at > SPARE_FOR:
                yield image


def _remove(
    stock: Stock,
    image: DiskImage,
    removals: Mapping[str, Removal],
    left: Counter[tuple[str, int]],
    rest: Mapping[tuple[str, int], int],
) -> int:
    """Plans the removal of an image, and of its generation if this was its last image; returns the bytes of both."""
    place = stock.name, image.generation
    removals[stock.name].images.append(image)
    left[place] -= 1
    if left[place]:
        return stock.images[image]
    removals[stock.name].generations.append(image.generation)
    return stock.images[image] + rest[place]


def sweep(place: DiskPlace, leased: Collection[Key]) -> None:
    """Removes the remains of killed builds and removals, and images that this version cannot use. Raises OSError.

    Call it only while nothing is being built there.
    """
    if not place.directory.is_dir():
        return
    for entry in list(place.directory.iterdir()):
        if entry.name.startswith(GONE) or entry.name.endswith(BEGUN) or entry.name == SCRATCH:
            _discard(entry)
    kept: dict[int, set[str]] = {}
    complete: Iterator[ImageKey] = iter(place.images())
    for generation, name in [*((image.generation, image.name) for image in complete), *leased]:
        kept.setdefault(generation, set()).update({name, Path(name).with_suffix(".json").name})
    for number in place.generations():
        images = place.generation(number) / "images"
        for entry in list(images.iterdir()) if images.is_dir() else ():
            if entry.name not in kept.get(number, ()):
                _discard(entry)


def discard_disks(place: DiskPlace) -> None:
    """Removes all disks of a repository, as far as possible."""
    with contextlib.suppress(OSError):
        for number in place.generations():
            place.remove_generation(number)
    shutil.rmtree(place.directory, ignore_errors=True)


def _discard(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def is_whole(place: DiskPlace, image: DiskImage) -> bool:
    """Whether the drives of an image exist with their right sizes. Raises OSError if they cannot be looked at."""
    data = place.data(image)
    with contextlib.suppress(FileNotFoundError):
        return place.tree(image).stat().st_size == image.size and (
            data is None or data.stat().st_size >= image.data_size
        )
    return False
