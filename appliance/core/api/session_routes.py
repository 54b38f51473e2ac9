"""The routes about what agents recorded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from appliance.core.api import problem, schemas
from appliance.core.api.declaration import JSON, Answer, Call, Header, Operation, Parameter, Reply, Scope
from appliance.core.api.operations import NodeOperations
from appliance.core.api.paging import AFTER, BY_GUEST, LIMIT, before, limit_of, paged, since
from appliance.core.api.spool import spool, spooled
from appliance.core.errors import NotFound
from appliance.core.git.diff_document import diff_document, diff_text
from appliance.core.git.history import Changed, sizes_between
from appliance.core.git.mirror import Mirror
from appliance.core.git.session_bundle import bundle
from appliance.core.models import Turn
from appliance.core.recording.comparison import Comparison, compare, find_turn, nodes_of, turns_of
from appliance.core.recording.turns import turns_here
from appliance.core.store.stores import Stores
from appliance.core.store.turn_details import no_details

DIFF_TYPE = "text/x-diff"
DOCUMENTS = 2
"""Diffs that are turned into documents at once. One may take 45 MB meanwhile."""
LINES = 1000
"""Lines that are encoded at once."""
BUNDLE_TYPE = "application/x-git-bundle"
_SESSION = "/v1/repos/{owner}/{repo}/sessions/{session}"
_READING = (problem.INVALID, problem.NOT_FOUND, problem.FAILED)
_TURN = Parameter("turn", {"type": "integer", "minimum": 1, "maximum": 999_999_999}, "The last by default.", "1")
_AGAINST = Parameter(
    "against", schemas.GIVEN_TEXT,
    "`base`: the commit that the session started from; `previous`: the turn before; another session of the "
    "repository, SESSION, or a turn of it, SESSION@TURN. By default `base`, with `turn` `previous`.",
    "previous",
)  # fmt: skip

_CHANGED = schemas.document("Changes", files_changed=schemas.COUNT, insertions=schemas.COUNT, deletions=schemas.COUNT)
_TURN_DOCUMENT = schemas.document(
    "Turn",
    turn=schemas.PAST_ID, id=schemas.PAST_ID, commit=schemas.OID, base=schemas.nullable(schemas.OID), at=schemas.TIME,
    subject=schemas.TEXT, commits=schemas.COUNT, files_changed=schemas.COUNT, insertions=schemas.COUNT,
    deletions=schemas.COUNT, client=schemas.TEXT, guest=schemas.nullable(schemas.TEXT),
    node=schemas.nullable(schemas.TEXT), away=schemas.SWITCH, bytes=schemas.COUNT,
    since_last=schemas.nullable(_CHANGED),
    notes={"type": "object", "additionalProperties": schemas.TEXT}, attachments=schemas.listed(schemas.ATTACHMENT),
)  # fmt: skip
_WITH_TURNS = schemas.document(
    "SessionWithTurns",
    **{**schemas.SESSION["properties"], "nodes": schemas.listed(schemas.TEXT), "turns": schemas.listed(_TURN_DOCUMENT)},
)
_HUNK = schemas.document(
    "Hunk",
    old_start=schemas.COUNT, old_lines=schemas.COUNT, new_start=schemas.COUNT, new_lines=schemas.COUNT,
    section=schemas.TEXT, lines=schemas.listed({"type": "string", "pattern": r"^[-+ \\]"}),
)  # fmt: skip
_FILE = schemas.document(
    "FileDiff",
    path=schemas.TEXT, before=schemas.nullable(schemas.TEXT),
    status=schemas.one_of("added", "deleted", "modified", "renamed", "copied", "type-changed"),
    old_mode=schemas.nullable(schemas.MODE), new_mode=schemas.nullable(schemas.MODE), binary=schemas.SWITCH,
    lossy=schemas.SWITCH, insertions=schemas.COUNT, deletions=schemas.COUNT, hunks=schemas.listed(_HUNK),
)  # fmt: skip
_DIFF = schemas.document(
    "Diff",
    repo=schemas.TEXT, old=schemas.nullable(schemas.OID), new=schemas.OID, words=schemas.TEXT, note=schemas.TEXT,
    files=schemas.listed(_FILE), files_changed=schemas.COUNT, insertions=schemas.COUNT, deletions=schemas.COUNT,
)  # fmt: skip
_NOTE = {
    "Gitmirror-Note": Header(
        schemas.TEXT, "Why the diff has more in it than agents did, such as different bases.", is_required=False
    )
}
_DISPOSITION = {"Content-Disposition": Header(schemas.TEXT, "A name for the file.")}


class SessionRoutes:
    """Answers requests about sessions from `stores` and the mirrors of `node`."""

    def __init__(self, node: NodeOperations, stores: Stores) -> None:
        self._node = node
        self._stores = stores
        self._reading = asyncio.Semaphore(DOCUMENTS)
        # A thread and no semaphore, because a search goes on after whoever asked has left.
        self._searches = ThreadPoolExecutor(1, thread_name_prefix="search")

    def operations(self) -> list[Operation]:
        """The routes, in the order of the documentation."""
        return [
            Operation(
                "GET", "/v1/sessions", "list-sessions", "Sessions, newest first", Scope.READ, self._sessions,
                {200: Answer("A page of them, as `sessions --json`.", schemas.page(schemas.SESSION))},
                (problem.INVALID,),
                query=(
                    Parameter("repo", schemas.NAME, "Only those of this repository.", "acme/widgets"),
                    Parameter(
                        "q", schemas.GIVEN_TEXT, "Only those with this text in their name or in a commit message.",
                        "parser",
                    ),
                    since("those with a turn"),
                    before("those whose last turn was"),
                    Parameter(
                        "path", schemas.GIVEN_TEXT, "Only those that touched this file, or something below this "
                        "directory.", "README.md",
                    ),
                    BY_GUEST,
                    LIMIT, AFTER,
                ),
            ),
            Operation(
                "GET", _SESSION, "get-session", "One session with its turns", Scope.READ, self._session,
                {200: Answer("As `session show --json`.", _WITH_TURNS)}, _READING, reads_mirror=True,
            ),
            Operation(
                "PATCH", _SESSION, "keep-session", "Exempt a session from retention, or end the exemption",
                Scope.OPERATE, self._keep, {200: Answer("The session as it is now.", schemas.SESSION)},
                (problem.INVALID, problem.NOT_FOUND, problem.CONFLICT, problem.TOO_LARGE_BODY),
                body=schemas.given(("keep",), keep=schemas.SWITCH),
                example={"keep": True},
            ),
            Operation(
                "DELETE", _SESSION, "drop-session", "End a session at once", Scope.OPERATE, self._drop,
                {200: Answer("It is gone.", schemas.DROPPED)}, (*_READING, problem.CONFLICT),
                query=(
                    Parameter(
                        "tip", schemas.GIVEN_TEXT,
                        "Only while this is its last commit, so that no turn is lost that an agent recorded meanwhile.",
                    ),
                ),
            ),
            Operation(
                "GET", f"{_SESSION}/diff", "session-diff", "What a session changed", Scope.READ, self._diff,
                {200: Answer("A patch for `git apply`.", media_type=DIFF_TYPE, also={JSON: _DIFF}, headers=_NOTE)},
                (*_READING, problem.TOO_LARGE),
                query=(_TURN, _AGAINST),
                reads_mirror=True,
                details="With `Accept: application/json`, its files, hunks and counts; a diff of over 8 MiB is refused "
                "in this form. The patch is streamed, whatever its size, but git may take 1.5 GiB of memory for it, "
                "about five times the size of a file that is new.",
            ),
            Operation(
                "POST", f"{_SESSION}/bring", "bring-session", "Have turns here that other nodes took", Scope.OPERATE,
                self._bring, {200: Answer("They are here.", schemas.document(
                    "Brought", repo=schemas.TEXT, session=schemas.TEXT, turns=schemas.listed(schemas.COUNT)
                ))},
                (*_READING, problem.TOO_LARGE_BODY),
                body=schemas.given(
                    (), turns=schemas.listed(schemas.COUNT), attachment=schemas.GIVEN_TEXT
                ),
                example={"turns": [1]},
                details="The last turn unless `turns` says otherwise. With `attachment`, the attachment of that name "
                "instead of the commits. The routes that need a turn do the same by themselves.",
            ),
            Operation(
                "GET", f"{_SESSION}/bundle", "session-bundle", "A session as a git bundle", Scope.READ, self._bundle,
                {200: Answer("A file that `git fetch` takes in a clone of the upstream.", media_type=BUNDLE_TYPE,
                             headers=_DISPOSITION)},
                _READING,
                query=(_TURN,),
                reads_mirror=True,
                details="It has the ref refs/agents/SESSION, and everything of it that the upstream's branches and "
                "tags do not have.",
            ),
        ]  # fmt: skip

    async def _sessions(self, call: Call) -> Any:
        query = call.query
        # A search reads the text of every turn, which takes a processor from those who serve guests: one at a time.
        searches = self._searches if query.get("q") or query.get("path") else None
        items, cursor = await asyncio.get_running_loop().run_in_executor(
            searches,
            self._stores.sessions.find,
            query.get("repo"),
            query.get("path"),
            query.get("q"),
            query.get("since"),
            query.get("after"),
            limit_of(call),
            query.get("guest"),
            query.get("before"),
        )
        return paged(items, cursor)

    async def _session(self, call: Call) -> Any:
        session, turns = await self._found(call)
        changes = await self._since_last(call.repo, turns)
        details = await asyncio.to_thread(self._stores.details.of_session, call.repo, session["session"])
        documents = [
            {key: value for key, value in asdict(turn).items() if key not in ("repo", "session")}
            | {"turn": number, "since_last": asdict(since) if since else None}
            | details.get(turn.id, no_details())
            for number, (turn, since) in enumerate(zip(turns, [None, *changes], strict=True), 1)
        ]
        return session | {"nodes": nodes_of(turns), "turns": documents}

    async def _since_last(self, repo: str, turns: Sequence[Turn]) -> list[Changed | None]:
        """What each turn but the first changed since the one before; None where one of the two is not here."""
        mirror = self._node.mirror(repo)
        here = await asyncio.to_thread(turns_here, mirror.path, turns)
        pairs = {
            number: (before.commit, turn.commit)
            for number, (before, turn) in enumerate(pairwise(turns))
            if {before.id, turn.id} <= here
        }
        found = dict(zip(pairs, await sizes_between(mirror, list(pairs.values())), strict=True))
        return [found.get(number) for number in range(len(turns) - 1)]

    async def _bring(self, call: Call) -> Any:
        _, turns = await self._found(call)
        name, numbers = call.body.get("attachment"), call.body.get("turns") or [len(turns)]
        chosen = [find_turn(call.path["session"], turns, number)[1] for number in numbers]
        if name is None:
            await self._node.bring(chosen)
        else:
            for turn in chosen:
                for row in await asyncio.to_thread(self._stores.details.attachments, turn.id):
                    if row.name == name:
                        await self._node.bring_attachment(row)
        return {"repo": call.repo, "session": call.path["session"], "turns": numbers}

    async def _keep(self, call: Call) -> Any:
        session, _ = await self._found(call)
        keep = bool(call.body["keep"])
        await asyncio.to_thread(self._stores.sessions.keep, call.repo, session["session"], keep)
        return session | {"kept": keep}

    async def _drop(self, call: Call) -> Any:
        return await self._node.drop_session(call.repo, call.path["session"], call.query.get("tip"))

    async def _diff(self, call: Call) -> Any:
        await self._found(call)
        compared = await asyncio.to_thread(
            compare, self._stores, call.repo, call.path["session"], call.query.get("turn"), call.query.get("against")
        )
        await self._node.bring(await asyncio.to_thread(turns_of, self._stores, compared))
        mirror = self._node.mirror(call.repo)
        if call.accepts(JSON, rather_than=DIFF_TYPE):
            return Reply(media_type=JSON, stream=self._diff_document(mirror, call.repo, compared))
        headers = {"Gitmirror-Note": ascii(compared.note)[1:-1]} if compared.note else {}
        return Reply(media_type=DIFF_TYPE, headers=headers, stream=await diff_text(mirror, *compared.commits))

    async def _diff_document(self, mirror: Mirror, repo: str, compared: Comparison) -> AsyncGenerator[bytes, None]:
        # As objects a diff takes five times the memory that its JSON takes, and its JSON up to six times that of the
        # text. So few may be objects at once, and none is in memory while a slow reader takes it.
        async with self._reading:
            document = _about(repo, compared) | await diff_document(mirror, *compared.commits)
            file = await spool(_in_pieces(document), self._node.scratch())
            del document
        with file:
            async for piece in spooled(file):
                yield piece

    async def _bundle(self, call: Call) -> Any:
        session, turns = await self._found(call)
        _, turn = find_turn(session["session"], turns, call.query.get("turn"))
        await self._node.bring([turn])
        stream = await bundle(self._node.mirror(call.repo), turn.commit, session["ref"])
        name = f"{session['session']}.bundle"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Reply(media_type=BUNDLE_TYPE, headers=headers, stream=stream)

    async def _found(self, call: Call) -> tuple[dict[str, Any], list[Turn]]:
        """The session of the path, by its whole name, and its turns. Raises NotFound."""
        name = call.path["session"]

        def look() -> tuple[dict[str, Any] | None, list[Turn]]:
            session = self._stores.sessions.get(call.repo, name)
            return session, self._stores.sessions.turns(call.repo, name) if session else []

        session, turns = await asyncio.to_thread(look)
        if session is None:
            raise NotFound(f"{call.repo} has no session {ascii(name)[:200]}", hint="GET /v1/sessions lists them")
        return session, turns


async def _in_pieces(document: dict[str, Any]) -> AsyncGenerator[bytes, None]:
    """The JSON of a diff, by and by: encoding 8 MiB at once would hold the interpreter for a fifth of a second.

    A hunk may be most of it, so its lines are not encoded at once either.
    """
    yield json.dumps({key: value for key, value in document.items() if key != "files"}).encode()[:-1] + b', "files": ['
    for number, file in enumerate(document["files"]):
        about = json.dumps({key: value for key, value in file.items() if key != "hunks"}).encode()
        yield (b", " if number else b"") + about[:-1] + b', "hunks": ['
        for place, hunk in enumerate(file["hunks"]):
            about = json.dumps({key: value for key, value in hunk.items() if key != "lines"}).encode()
            yield (b", " if place else b"") + about[:-1] + b', "lines": ['
            for first in range(0, len(hunk["lines"]), LINES):
                lines = json.dumps(hunk["lines"][first : first + LINES]).encode()
                yield (b", " if first else b"") + lines[1:-1]
                await asyncio.sleep(0)
            yield b"]}"
        yield b"]}"
    yield b"]}\n"


def _about(repo: str, compared: Comparison) -> dict[str, Any]:
    old, new = compared.commits
    return {"repo": repo, "old": old, "new": new, "words": compared.words, "note": compared.note}
