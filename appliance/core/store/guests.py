"""Known guests: who they are, what they may do, and the socket files that `serve` made for them."""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.core.errors import Conflict, NotFound, UsageError
from appliance.core.models import Guest, Repo
from appliance.core.names import is_guest_name
from appliance.core.store.database import Database, rows
from appliance.core.store.tokens import LONGEST, hash_of
from appliance.core.text import escape_ascii
from appliance.core.units import rfc3339

PREFIX = "gmg_"
"""The prefix of every guest token, so that a leaked one can be recognised."""
MOST_SESSIONS = 256
"""The most sessions of a guest. They travel to the hooks in one environment variable, which holds 128 KiB."""
MOST_REPOS = 256
LONGEST_PATH = 4000

_SESSION = re.compile(r"\*|[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\*?")
_ZONE = re.compile(r"(?!\d+\Z)[!-.0-~]{1,15}")
"""The name of a network interface. Its number names it too, but not in the address of a connection."""


class UnknownGuest(NotFound):
    """No guest of that name is known."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no known guest {escape_ascii(name)}", hint="`guests` lists those that are known")


@dataclass(frozen=True)
class GuestOrder:
    """What a guest that is to be made known is and may do; see `models.Guest`. `ttl` is in seconds, None for no end."""

    name: str
    sessions: tuple[str, ...] = ()
    repos: tuple[Repo, ...] = ()
    only: bool = False
    unix: str | None = None
    address: str | None = None
    token: bool = False
    ttl: float | None = None


class GuestStore:
    """The known guests in `database`. `clock` gives Unix seconds. Every method raises StoreError."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def add(self, order: GuestOrder) -> tuple[Guest, str | None]:
        """Makes a guest known; returns it with its token, which is returned only this once.

        Raises UsageError for an invalid order, Conflict if its name, its socket or its address is another guest's.
        """
        columns = _checked(order)
        token, now = (PREFIX + secrets.token_urlsafe(32) if order.token else None), self._clock()
        with self._database.writing() as connection:
            for column in ("name", "unix", "address"):
                taken = rows(connection, f"SELECT name FROM guests WHERE {column} = ?", columns[column])
                if taken:
                    raise _conflict(column, str(columns[column]), str(taken[0]["name"]))
            ended = None if order.ttl is None else now + order.ttl
            columns |= {"hash": token and hash_of(token), "created_at": now, "expires_at": ended}
            connection.table("guests").insert(columns)
            [row] = rows(connection, "SELECT id FROM guests WHERE name = ?", order.name)
            for session in dict.fromkeys(order.sessions):
                connection.execute("INSERT INTO guest_sessions VALUES (?, ?)", [row["id"], session])
            for repo in order.repos:
                connection.execute(
                    "INSERT OR IGNORE INTO guest_repos VALUES (?, ?, ?)", [row["id"], repo.name, repo.id]
                )
        return self.get(order.name), token

    def known_as(self, order: GuestOrder) -> Guest | None:
        """The guest that this very order made known already, so that a client may send it again; otherwise None.

        None for an order with a token too, because the token cannot be shown again. Raises UsageError.
        """
        columns = _checked(order)
        found = self._read("WHERE name = ?", order.name)
        if not found or order.token:
            return None
        guest = found[0][0]
        lasts = None if guest.expires_at is None else round(guest.expires_at - guest.created_at, 3)
        same = (
            (guest.unix, guest.address, guest.only, guest.has_token)
            == (columns["unix"], columns["address"], order.only, False)
            and set(guest.sessions) == set(order.sessions)
            and dict(guest.repos) == {repo.name: repo.id for repo in order.repos}
            and lasts == (None if order.ttl is None else round(order.ttl, 3))
        )
        return guest if same else None

    def expired(self) -> list[Guest]:
        """The guests whose time is over and that are not removed yet."""
        now = self._clock()
        return [guest for guest, _ in self.all() if guest.expires_at is not None and guest.expires_at <= now]

    def count(self) -> int:
        """How many guests are known."""
        now = self._clock()
        with self._database.reading() as connection:
            [found] = rows(
                connection, "SELECT count(*) AS n FROM guests WHERE expires_at IS NULL OR expires_at > ?", now
            )
        return int(found["n"])

    def get(self, name: str) -> Guest:
        """The guest of that name, expired or not. Raises UnknownGuest."""
        found = self._read("WHERE name = ?", name)
        if not found:
            raise UnknownGuest(name)
        return found[0][0]

    def all(self) -> list[tuple[Guest, str | None]]:
        """Every guest, by name, with the hash of its token; those that have expired and are not removed yet too."""
        return self._read("")

    def _read(self, where: str, *values: str) -> list[tuple[Guest, str | None]]:
        chosen = f"guest_id IN (SELECT id FROM guests {where})"
        with self._database.reading() as connection:
            guests = rows(connection, f"SELECT * FROM guests {where} ORDER BY name", *values)
            sessions = rows(connection, f"SELECT * FROM guest_sessions WHERE {chosen} ORDER BY session", *values)
            repos = rows(connection, f"SELECT * FROM guest_repos WHERE {chosen} ORDER BY repo", *values)
        sessions_of: dict[int, list[str]] = {}
        repos_of: dict[int, dict[str, int]] = {}
        for row in sessions:
            sessions_of.setdefault(row["guest_id"], []).append(row["session"])
        for row in repos:
            repos_of.setdefault(row["guest_id"], {})[row["repo"]] = row["repo_id"]
        return [
            (_guest(row, sessions_of.get(row["id"], ()), repos_of.get(row["id"], {})), row["hash"]) for row in guests
        ]

    def remove(self, name: str, guest_id: int) -> None:
        """Forgets a guest, and not another one that has its name by now. What it recorded keeps its name.

        Raises UnknownGuest.
        """
        with self._database.writing() as connection:
            if not connection.execute("DELETE FROM guests WHERE name = ? AND id = ?", [name, guest_id]).rowcount:
                raise UnknownGuest(name)

    def sockets(self, guest_id: int | None = None) -> dict[str, str]:
        """What identifies each socket file that was made, by path; of one guest, or of all."""
        with self._database.reading() as connection:
            of_guest = "WHERE ?1 IS NULL OR guest_id = ?1"
            found = rows(connection, f"SELECT path, identity FROM guest_sockets {of_guest}", guest_id)
        return {row["path"]: row["identity"] for row in found}

    def note_sockets(self, identities: Mapping[int, Mapping[str, str]]) -> None:
        """Remembers the socket files of guests, by guest and path, in place of those remembered before."""
        noted = [(guest_id, path, each) for guest_id, files in identities.items() for path, each in files.items()]
        if not noted:
            return
        with self._database.writing() as connection:
            connection.conn.executemany(
                "DELETE FROM guest_sockets WHERE guest_id = ?", [(each,) for each in identities]
            )
            connection.conn.executemany(
                "INSERT OR REPLACE INTO guest_sockets (guest_id, path, identity) VALUES (?, ?, ?)", noted
            )

    def last_seen(self) -> dict[str, dict[str, Any]]:
        """What each guest did last, by name: `{at, what, repo}`, its newest hydration or turn."""
        with self._database.reading() as connection:
            found = rows(
                connection,
                """SELECT name, at, what, repo FROM (
                     SELECT g.name AS name, h.at AS at, 'hydrated' AS what, h.repo AS repo FROM guests g
                       JOIN hydrations h ON h.id = (SELECT max(id) FROM hydrations WHERE guest = g.name)
                     UNION ALL
                     SELECT g.name, round((julianday(t.at) - 2440587.5) * 86400.0, 3), 'recorded ' || t.session, t.repo
                       FROM guests g
                       JOIN turns t ON t.id = (SELECT max(id) FROM turns WHERE guest = g.name AND away = 0)
                   ) ORDER BY at""",
            )
        return {row["name"]: {"at": rfc3339(row["at"]), "what": row["what"], "repo": row["repo"]} for row in found}


def guest_document(guest: Guest, last: Mapping[str, Any] | None = None, problem: str | None = None) -> dict[str, Any]:
    """One guest as `guests --json` shows it. `last` is what it did last; `problem` is why it cannot come."""
    return {
        "name": guest.name,
        "sessions": list(guest.sessions),
        "repos": list(guest.repos),
        "only": guest.only,
        "unix": guest.unix,
        "address": guest.address,
        "has_token": guest.has_token,
        "created_at": rfc3339(guest.created_at),
        "expires_at": None if guest.expires_at is None else rfc3339(guest.expires_at),
        "last": None if last is None else dict(last),
        "problem": problem,
    }


def added_document(guest: Guest, token: str | None, others: Iterable[Guest]) -> dict[str, Any]:
    """What `guest add --json` prints: the guest, its `token` if it is new and has one, and `shared`; see below."""
    return guest_document(guest) | {"token": token, "shared": overlapping(guest.sessions, others)}


def overlapping(sessions: Iterable[str], others: Iterable[Guest]) -> dict[str, list[str]]:
    """Which of the session patterns other guests may write too, with the names of those guests."""
    shared, others = {}, list(others)
    for pattern in sessions:
        names = [guest.name for guest in others if any(_meet(pattern, other) for other in guest.sessions)]
        if names:
            shared[pattern] = names
    return shared


def _meet(one: str, other: str) -> bool:
    """Whether a session can match both patterns."""
    first, second = one.removesuffix("*"), other.removesuffix("*")
    if one.endswith("*") and other.endswith("*"):
        return first.startswith(second) or second.startswith(first)
    if one.endswith("*"):
        return other.startswith(first)
    return first.startswith(second) if other.endswith("*") else one == other


def _checked(order: GuestOrder) -> dict[str, Any]:
    """The columns of an order. Raises UsageError."""
    if not is_guest_name(order.name):
        raise UsageError(
            f"{escape_ascii(order.name)!r} is not a guest's name", hint="1 to 64 of A-Z a-z 0-9 . _ -, such as vm-7"
        )
    for session in order.sessions:
        plain = session.removesuffix("*")
        if not _SESSION.fullmatch(session) or ".." in plain or plain.endswith(".lock"):
            raise UsageError(
                f"{escape_ascii(session)!r} is not a session",
                hint="a name such as fix-dns, or with * at its end all that begin so",
            )
    if len(order.sessions) > MOST_SESSIONS or len(order.repos) > MOST_REPOS:
        raise UsageError(
            f"a guest has at most {MOST_SESSIONS} sessions and {MOST_REPOS} repositories",
            hint="a session that ends in * stands for many",
        )
    if order.unix is None and order.address is None and not order.token:
        raise UsageError(f"nothing says how {order.name} comes", hint="give it --unix PATH, --address IP or --token")
    if order.ttl is not None and not 1 <= order.ttl <= LONGEST:
        raise UsageError("a guest is known for at least one second and at most ten years", hint="for example --ttl 8h")
    return {
        "name": order.name,
        "only": order.only,
        "unix": None if order.unix is None else _path(order.unix),
        "address": None if order.address is None else _address(order.address),
    }


def _path(text: str) -> str:
    if not text.startswith("/") or len(text) > LONGEST_PATH or not text.isprintable() or text.endswith("/"):
        raise UsageError(
            f"{escape_ascii(text[:200])!r} is not the path of a socket",
            hint="an absolute path such as /run/fc/vm-7/v.sock; serve adds _9418 and _9419",
        )
    if any(part in (".", "..", "") for part in text.split("/")[1:]):
        raise UsageError(f"{escape_ascii(text)!r} has empty parts, . or ..", hint="give the path without them")
    return text


def _address(text: str) -> str:
    """The address as connections have it: IPv4 as such, IPv6 in lower case, and with a zone only where one is."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise UsageError(
            f"{escape_ascii(text)!r} is not an IP address", hint="one address, such as 172.16.0.7"
        ) from None
    zone = None
    if isinstance(address, ipaddress.IPv6Address):
        zone, address = address.scope_id, address.ipv4_mapped or address
    if address.is_multicast or address.is_unspecified:
        raise UsageError(f"nobody comes from {escape_ascii(text)}", hint="one address, such as 172.16.0.7")
    if (address.version == 6 and address.is_link_local) != (zone is not None) or not _ZONE.fullmatch(zone or "eth0"):
        raise UsageError(
            f"{escape_ascii(text)!r} is not an address as connections have it",
            hint="a link-local address has the name of its interface, such as fe80::1%tap7; no other address has one",
        )
    return str(address)


def _conflict(column: str, value: str, name: str) -> Conflict:
    if column == "name":
        return Conflict(
            f"the guest {name} is known already",
            hint=f"`guest remove {name}` first, or choose another name; a token cannot be shown again",
        )
    called = {"unix": "the socket", "address": "the address"}[column]
    return Conflict(f"{called} {escape_ascii(value)} is that of the guest {name}", hint=f"`guest remove {name}` first")


def _guest(row: dict[str, Any], sessions: Iterable[str], repos: Mapping[str, int]) -> Guest:
    return Guest(
        id=row["id"],
        name=row["name"],
        sessions=tuple(sessions),
        repos=dict(repos),
        only=bool(row["only"]),
        unix=row["unix"],
        address=row["address"],
        has_token=row["hash"] is not None,
        created_at=row["created_at"],
        expires_at=row["expires_at"],
    )
