"""The manifest of one backup: JSON that names every file of it, and per repository the bundles in order.

A manifest's file name ends in the first digits of its content's SHA-256, which reveals damage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from appliance.core.errors import GitmirrorError
from appliance.core.names import is_repo_name
from appliance.core.store.told import Head

FORMAT = 1
_HASH_IN_NAME = 16
HISTORY, TURNS = "history", "turns"


@dataclass(frozen=True)
class StoredFile:
    """A file of a backup: its path below the backup directory, its bytes, its SHA-256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """A git bundle. `kind` is `history` for commits of the upstream, `turns` for recorded ones.

    `holds` are the objects that its refs name, and `needs` the commits that earlier bundles must contain.
    """

    file: StoredFile
    kind: str
    holds: tuple[str, ...]
    needs: tuple[str, ...]


@dataclass(frozen=True)
class RepositoryBackup:
    """The recorded work of one repository: its refs, and the bundles with their objects, in order.

    `fetched_with_credential` is the URL that its mirror was marked with, if a credential fetched its private content.
    """

    url: str
    fetched_with_credential: str | None
    refs: Mapping[str, str]
    bundles: tuple[Bundle, ...]


@dataclass(frozen=True)
class Manifest:
    """One backup. `at` is RFC 3339; `head` is the newest event of the copied audit log, None for an empty log.

    `attachments` has what was attached to turns, by its path below `Layout.attachments`.
    """

    at: str
    gitmirror: str
    head: Head | None
    database: StoredFile
    audit_head: StoredFile | None
    repositories: Mapping[str, RepositoryBackup] = field(default_factory=dict)
    attachments: Mapping[str, StoredFile] = field(default_factory=dict)

    def files(self) -> dict[str, StoredFile]:
        """Every file that restoring it needs, by path."""
        found = [self.database, *([self.audit_head] if self.audit_head else [])]
        found += [bundle.file for each in self.repositories.values() for bundle in each.bundles]
        found += self.attachments.values()
        return {file.path: file for file in found}

    @property
    def seconds(self) -> float:
        """When it was made, in Unix seconds."""
        return datetime.fromisoformat(self.at).timestamp()

    @property
    def size(self) -> int:
        """The bytes of all its files."""
        return sum(file.size for file in self.files().values())

    def encode(self) -> bytes:
        """The content of its file."""
        document = {"format": FORMAT} | asdict(self)
        document["head"] = self.head._asdict() if self.head else None
        return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def name_of(stamp: str, content: bytes) -> str:
    """The file name of a manifest written at `stamp`."""
    return f"{stamp}-{hashlib.sha256(content).hexdigest()[:_HASH_IN_NAME]}.json"


def decode(name: str, content: bytes) -> Manifest:
    """Reads a manifest. Raises GitmirrorError when it is damaged or a later version wrote it."""
    if not name.endswith(f"-{hashlib.sha256(content).hexdigest()[:_HASH_IN_NAME]}.json"):
        raise GitmirrorError(f"the manifest {name} is damaged: its content does not match its name")
    document = json.loads(content)
    if document["format"] != FORMAT:
        raise GitmirrorError(
            f"the manifest {name} was written by gitmirror {document['gitmirror']}, in an unknown format",
            hint="use that version, or a newer one",
        )
    for repo in document["repositories"]:
        if not is_repo_name(repo):
            raise GitmirrorError(f"the manifest {name} names an invalid repository: {repo!r}")
    head, told = document["head"], document["audit_head"]
    return Manifest(
        at=document["at"],
        gitmirror=document["gitmirror"],
        head=Head(**head) if head else None,
        database=StoredFile(**document["database"]),
        audit_head=StoredFile(**told) if told else None,
        attachments={
            path: StoredFile(**file) for path, file in document.get("attachments", {}).items() if _is_plain(path)
        },
        repositories={name: _repository(each) for name, each in document["repositories"].items()},
    )


def _is_plain(path: str) -> bool:
    """Whether the path of an attachment stays below its directory."""
    owner, _, rest = path.partition("/")
    repo, _, rest = rest.partition("/")
    turn, _, digest = rest.partition("/")
    return is_repo_name(f"{owner}/{repo}") and turn.isdecimal() and digest.isalnum()


def _repository(document: Mapping[str, Any]) -> RepositoryBackup:
    bundles = tuple(
        Bundle(StoredFile(**each["file"]), each["kind"], tuple(each["holds"]), tuple(each["needs"]))
        for each in document["bundles"]
    )
    return RepositoryBackup(document["url"], document["fetched_with_credential"], document["refs"], bundles)
