"""Parses and compares sets of refs: an upstream's, and a mirror's. Runs no git."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import ParamSpec, TypeVar

from appliance.core.models import RefChange, RemoteRefs

_P = ParamSpec("_P")
_T = TypeVar("_T")

FOLLOWED = ("refs/heads/", "refs/tags/")
"""Prefixes of the refs that a mirror copies from its upstream."""
AGENTS = "refs/agents/"
"""Sessions with a turn of late: the only refs that guests push."""
ARCHIVE = "refs/gitmirror/archive/"
"""Idle sessions, which receive-pack need not read. Whoever reads a mirror finds them under their names below AGENTS."""
ANCHORS = "refs/gitmirror/anchors/"
TIPS = "refs/gitmirror/tips/"
"""Old tips of the registered branch: the only private refs that receive-pack advertises. Without them, a guest that
cloned shallow at yesterday's tip pushes its whole snapshot again (measured: 156 objects instead of 3)."""
MANY = 4000
"""Above this number of refs, work on them runs in a thread: 60,000 take tenths of a second, and guests would wait."""


async def beside(count: int, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Returns the result of `work`, which goes through `count` refs: in a thread when there are many."""
    return await asyncio.to_thread(work, *args, **kwargs) if count > MANY else work(*args, **kwargs)


def parse_remote(output: bytes) -> RemoteRefs:
    """Parses the output of `ls-remote --symref`; ref names may hold any bytes."""
    return parse_ls_remote(output.decode("utf-8", "surrogateescape"))


def parse_local(output: bytes) -> dict[str, str]:
    """Parses lines of `OID NAME` into refs by name."""
    lines = output.decode("utf-8", "surrogateescape").splitlines()
    return {name: oid for oid, _, name in (line.partition(" ") for line in lines)}


def archived(ref: bytes) -> bytes | None:
    """What a session's ref, or the beginning of one, is called in the archive; None if it is no session's."""
    return ARCHIVE.encode() + ref.removeprefix(AGENTS.encode()) if ref.startswith(AGENTS.encode()) else None


def shown(ref: bytes) -> bytes:
    """The name under which a ref is read: that of an archived session is the one that was pushed."""
    return AGENTS.encode() + ref.removeprefix(ARCHIVE.encode()) if ref.startswith(ARCHIVE.encode()) else ref


def anchoring(changes: Iterable[RefChange], branch: str | None) -> dict[str, None]:
    """The lines for `update-ref`, each once."""
    lines = []
    for change in changes:
        if change.old is not None:
            lines.append(f"update {ANCHORS}{change.old} {change.old}\n")
            if change.ref == branch:
                lines.append(f"update {TIPS}{change.old} {change.old}\n")
    return dict.fromkeys(lines)


def parse_ls_remote(text: str) -> RemoteRefs:
    """The branches, tags and HEAD in `ls-remote --symref` output, without peeled tags and all other refs."""
    refs: dict[str, str] = {}
    head = None
    for line in text.splitlines():
        value, _, name = line.partition("\t")
        if name == "HEAD" and value.startswith("ref: refs/heads/"):
            head = value.removeprefix("ref: ")
        elif name.startswith(FOLLOWED) and not name.endswith("^{}"):
            refs[name] = value
    return RemoteRefs(refs, head)


def changes_between(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[RefChange, ...]:
    """The differences between two sets of refs, sorted by ref name."""
    names = sorted(before.keys() | after.keys())
    return tuple(
        RefChange(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)
    )


def refs_in_the_way(remote: Mapping[str, str], local: Mapping[str, str]) -> list[str]:
    """Local refs, deleted upstream, whose name is a parent directory of an upstream ref's name or lies below one."""
    directories = {name[:index] for name in remote for index, char in enumerate(name) if char == "/"}
    return [
        name
        for name in sorted(local)
        if name not in remote
        and (name in directories or any(name[:index] in remote for index, char in enumerate(name) if char == "/"))
    ]


def unholdable(repository: Path, refs: Iterable[str]) -> dict[str, str]:
    """The upstream refs that cannot be stored as files in `repository`, with the reason for each.

    If an upstream has both a ref and another below it (it may store refs in another format), the upper one is stored.
    """
    longest = os.pathconf(repository, "PC_NAME_MAX") - len(".lock")
    deepest = os.pathconf(repository, "PC_PATH_MAX") - len(os.fsencode(repository)) - len("/.lock") - 1
    names, found = set(refs), {}
    for ref in sorted(names):
        raw = ref.encode("utf-8", "surrogateescape")
        above = next((ref[:at] for at, char in enumerate(ref) if char == "/" and ref[:at] in names), None)
        if above is not None:
            found[ref] = f"it cannot be stored here beside {above}"
        elif len(raw) > deepest or any(len(part) > longest for part in raw.split(b"/")):
            found[ref] = "it cannot be stored here, its name is too long for this disk"
    return found
