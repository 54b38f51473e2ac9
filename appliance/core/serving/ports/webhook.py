"""Parses a GitHub webhook, and finds the repositories that it is about. Pure."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from appliance.core.git.ref_sets import FOLLOWED
from appliance.core.models import ZERO_OID, Announcement, Repo
from appliance.core.names import is_branch_name
from appliance.core.upstream import Place, place_of

PING, PUSH, CREATE, DELETE = "ping", "push", "create", "delete"
FORM = "application/x-www-form-urlencoded"
_OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_URLS = ("clone_url", "ssh_url", "html_url", "git_url", "git_ssh_url", "git_http_url", "url")


class Malformed(Exception):
    """The body of a signed webhook is not in GitHub's format; the text says why."""


@dataclass(frozen=True)
class Delivery:
    """One webhook: the URLs and the full name of its repository, and the ref that it announces, or None."""

    urls: tuple[str, ...] = ()
    full_name: str = ""
    announcement: Announcement | None = None


class Signature:
    """Computes the HMAC-SHA256 of a body as it arrives, and compares it with `X-Hub-Signature-256`."""

    def __init__(self, secret: bytes, header: str) -> None:
        self._mac = hmac.new(secret, digestmod=hashlib.sha256)
        self._given = header.strip().lower()

    def update(self, data: bytes) -> None:
        """Adds the next bytes of the body."""
        self._mac.update(data)

    def holds(self) -> bool:
        """Whether the header matches; the comparison takes constant time."""
        return hmac.compare_digest(f"sha256={self._mac.hexdigest()}".encode(), self._given.encode("utf-8", "replace"))


def read_delivery(event: str, content_type: str, body: bytes) -> Delivery:
    """Parses a body whose signature is verified: JSON, or a form with `payload`. Raises Malformed."""
    try:
        if content_type.partition(";")[0].strip().lower() == FORM:
            fields = parse_qs(body.decode("utf-8"), max_num_fields=16)
            # `curl -d` sends this content type with any body.
            if "payload" in fields or not body.lstrip().startswith(b"{"):
                body = fields.get("payload", [""])[0].encode("utf-8", "surrogatepass")
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise Malformed("the body is not a webhook in JSON") from None
    repository = document.get("repository") if isinstance(document, dict) else None
    if not isinstance(repository, dict):
        raise Malformed("the body names no repository")
    urls = tuple(dict.fromkeys(url for key in _URLS if isinstance(url := repository.get(key), str) and url))
    name = repository.get("full_name")
    return Delivery(urls, name if isinstance(name, str) else "", _announcement(event, document))


def _announcement(event: str, document: Mapping[str, Any]) -> Announcement | None:
    """The change that a refresh must fetch; None if mirrors do not follow the ref, or its name is invalid."""
    ref, oid = document.get("ref"), document.get("after")
    if not isinstance(ref, str):
        return None
    if event in (CREATE, DELETE):
        kind = document.get("ref_type")
        ref = {"branch": "refs/heads/", "tag": "refs/tags/"}.get(kind if isinstance(kind, str) else "", "") + ref
        oid = "" if event == CREATE else None
    elif not isinstance(oid, str) or not _OID.fullmatch(oid):
        return None
    elif set(oid) <= set(ZERO_OID):
        oid = None
    if not ref.startswith(FOLLOWED) or len(ref) > 1000 or not is_branch_name(ref):
        return None
    before = document.get("before")
    return Announcement(ref, oid, before if isinstance(before, str) and _OID.fullmatch(before) else "")


class Finder:
    """Finds those of `repos` that a webhook is about. Only enabled ones are found."""

    def __init__(self, repos: Sequence[Repo]) -> None:
        self._by_place: dict[Place, list[Repo]] = {}
        self._by_path: dict[tuple[str, str], list[Repo]] = {}
        self._by_name: dict[str, list[Repo]] = {}
        for repo in repos:
            place = place_of(repo.url) if repo.enabled else None
            if place is None:
                continue
            self._by_place.setdefault(place, []).append(repo)
            # Indexed without the port, because a host has different ports for ssh and https.
            self._by_path.setdefault((place.host, place.path), []).append(repo)
            for name in {repo.name.casefold(), "/".join(place.path.split("/")[-2:])}:
                self._by_name.setdefault(name, []).append(repo)

    def find(self, delivery: Delivery) -> list[Repo]:
        """The repositories by URL; if there are none, by URL without port and protocol; if there are none, by name."""
        places = [place for url in delivery.urls if (place := place_of(url)) is not None]
        for repos in (
            [repo for place in places for repo in self._by_place.get(place, [])],
            [repo for place in places for repo in self._by_path.get((place.host, place.path), [])],
            self._by_name.get(delivery.full_name.casefold(), []),
        ):
            if repos:
                return list({repo.id: repo for repo in repos}.values())
        return []
