"""Reads many commits and tags in one git process, each up to a limit, because a guest may write any into its own."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import dropwhile, takewhile
from typing import Any

from appliance.core.git.command import GitError
from appliance.core.git.history import LONGEST_SUBJECT
from appliance.core.git.mirror import Mirror
from appliance.core.units import rfc3339

MOST_KEPT = 256 * 2**10
"""Bytes of one object that are kept. Parents, signatures and the message behind them are cut there."""
MOST_MESSAGE = 64 * 2**10
"""Bytes of a message in a document. A longer one is cut and ends with `…`."""

_IDENT = re.compile(rb"(?P<name>[^<]*)<(?P<email>[^>]*)>(?:.*?[> ](?P<at>[0-9]+) [+-][0-9]+)?", re.DOTALL)
_ENCODING = re.compile(r"(?:iso-?8859|latin|windows-|cp12|koi8|euc|shift|sjis|gb|big5)[\w-]*", re.IGNORECASE | re.ASCII)
"""Encodings that a commit may name; some of Python's others are slow on purpose-made text, or make no valid text."""
_LAST_MOMENT = datetime.max.replace(tzinfo=UTC).timestamp()


@dataclass(frozen=True)
class StoredText:
    """A commit or a tag as git stores it: headers, a blank line, the message. Cut after MOST_KEPT bytes."""

    oid: str
    kind: str
    raw: bytes

    @cached_property
    def _headers(self) -> list[tuple[bytes, bytes]]:
        lines = self.raw.partition(b"\n\n")[0].split(b"\n")
        # Lines with a space in front go on with the header above them: signatures, merged tags.
        return [(key, value) for key, _, value in (line.partition(b" ") for line in lines) if key]

    @property
    def parents(self) -> list[str]:
        """The ids of a commit's parents."""
        length = len(self.oid)
        values = (value for key, value in self._headers if key == b"parent" and len(value) == length)
        return [value.decode("ascii", "replace") for value in values]

    @property
    def message(self) -> str:
        """The message, with its subject, of at most MOST_MESSAGE bytes."""
        raw = self.raw.partition(b"\n\n")[2]
        if len(raw) <= MOST_MESSAGE:
            return self._text(raw)
        return self._text(raw[: MOST_MESSAGE - len("…".encode())]).rstrip("\N{REPLACEMENT CHARACTER}") + "…"

    @property
    def subject(self) -> str:
        """The first paragraph of the message as one line, as git shows it, of at most LONGEST_SUBJECT characters."""
        # What git takes for a blank, which is less than what Python does.
        lines = [line.rstrip(" \t\r") for line in self.message.split("\n")]
        paragraph = takewhile(bool, dropwhile(lambda line: not line, lines))
        return " ".join(paragraph)[:LONGEST_SUBJECT]

    @property
    def at(self) -> str | None:
        """When the commit or tag was made, as RFC 3339; None when it does not say."""
        return self.person(b"tagger" if self.kind == "tag" else b"committer")["at"]

    def person(self, header: bytes) -> dict[str, str | None]:
        """`{name, email, at}` of the header `author`, `committer` or `tagger`; `at` is RFC 3339 in UTC, or None."""
        value = next((value for key, value in self._headers if key == header), b"")
        match = _IDENT.match(value)
        if match is None:
            return {"name": self._text(value).strip(), "email": "", "at": None}
        seconds = int(match["at"]) if match["at"] and len(match["at"]) < 20 else None
        # git stores any number. RFC 3339 has four digits for the year.
        at = rfc3339(seconds) if seconds is not None and seconds < _LAST_MOMENT else None
        return {"name": self._text(match["name"]).strip(), "email": self._text(match["email"]).strip(), "at": at}

    def commit_document(self) -> dict[str, Any]:
        """The commit as the API shows it."""
        return {
            "oid": self.oid,
            "parents": self.parents,
            "author": self.person(b"author"),
            "committer": self.person(b"committer"),
            "subject": self.subject,
            "message": self.message,
        }

    def _text(self, raw: bytes) -> str:
        named = next((value for key, value in self._headers if key == b"encoding"), b"").decode("ascii", "replace")
        encoding = named if _ENCODING.fullmatch(named) else "utf-8"
        try:
            return raw.decode(encoding, "replace")
        except LookupError:
            return raw.decode("utf-8", "replace")


async def stored_texts(mirror: Mirror, oids: Sequence[str], *, deadline: float) -> AsyncGenerator[StoredText, None]:
    """The commits and tags with these ids, in this order. Raises GitError.

    One that the mirror lacks has the kind `missing` and no content. Close the generator (`contextlib.aclosing`) when
    you leave before its end.
    """
    if not oids:
        return
    stdin = "".join(f"{oid}\n" for oid in oids).encode()
    stream = mirror.git.stream("cat-file", "--batch", "--buffer", cwd=mirror.path, deadline=deadline, stdin=stdin)
    async with aclosing(stream):
        buffer = _Buffer(stream)
        for _ in oids:
            words = (await buffer.line()).split()
            if words[-1] == b"missing":
                yield StoredText(words[0].decode("ascii"), "missing", b"")
                continue
            oid, kind, size = (word.decode("ascii") for word in words)
            raw = await buffer.take(int(size), MOST_KEPT)
            await buffer.take(1, 0)
            yield StoredText(oid, kind, raw)


class _Buffer:
    """What has arrived of a stream and was not taken yet."""

    def __init__(self, stream: AsyncGenerator[bytes, None]) -> None:
        self._stream = stream
        self._held = b""

    async def line(self) -> bytes:
        """The next line, which is short, without its end."""
        while b"\n" not in self._held:
            self._held += await self._more()
        line, _, self._held = self._held.partition(b"\n")
        return line

    async def take(self, size: int, kept: int) -> bytes:
        """The first `kept` of the next `size` bytes. The others are dropped as they arrive."""
        parts: list[bytes] = []
        while size:
            part, self._held = self._held[:size], self._held[size:]
            size -= len(part)
            parts.append(part[:kept])
            kept -= len(parts[-1])
            if size:
                self._held = await self._more()
        return b"".join(parts)

    async def _more(self) -> bytes:
        try:
            return await anext(self._stream)
        except StopAsyncIteration:
            raise GitError("git cat-file ended too early") from None
