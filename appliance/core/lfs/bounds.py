"""What bounds the objects that are known, asked for and fetched, so that no repository takes the room of the others."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import NamedTuple, TypeVar

from appliance.core.lfs.pointers import Pointer
from appliance.core.models import Repo

_Value = TypeVar("_Value")

MOST_KNOWN = 20_000
"""The most answers of upstreams that are remembered."""


class Key(NamedTuple):
    """The size is part of it, so that who states a wrong one gets an error that is not for the others."""

    repo: int
    oid: str
    size: int


def key_of(repo: Repo, pointer: Pointer) -> Key:
    """The key of an object."""
    return Key(repo.id, pointer.oid, pointer.size)


def has_its_share(keys: Collection[Key], repo: Repo, most: int) -> bool:
    """Whether a repository has half of what the others leave of `most`, so that there is always room for one more.

    A guest can make up objects, and the upstream of its repository may hang.
    """
    own = sum(key.repo == repo.id for key in keys)
    return 2 * own >= most - (len(keys) - own)


def put(known: OrderedDict[Key, _Value], key: Key, value: _Value) -> None:
    """Adds a value as the newest one, and forgets the oldest ones beyond MOST_KNOWN."""
    known[key] = value
    known.move_to_end(key)
    while len(known) > MOST_KNOWN:
        known.popitem(last=False)
