"""The routes that read a mirror without git."""

from __future__ import annotations

from typing import Any

from appliance.core.api import problem, schemas
from appliance.core.api.declaration import JSON, Answer, Call, Header, Operation, Parameter, Reply, Scope
from appliance.core.api.operations import NodeOperations
from appliance.core.api.paging import AFTER, LIMIT, limit_of, paged
from appliance.core.git.reading import FileAtRef, list_commits, list_refs, open_file

FILE_TYPE = "application/octet-stream"
_REPO = "/v1/repos/{owner}/{repo}"
_READING = (problem.INVALID, problem.NOT_FOUND, problem.FAILED)
_REF = Parameter("ref", schemas.GIVEN_TEXT, "A branch, tag, session's ref or commit; HEAD by default.", "main")

_KIND = schemas.one_of("file", "executable", "symlink", "directory", "submodule")
_REF_DOCUMENT = schemas.document(
    "Ref",
    ref=schemas.TEXT, oid=schemas.OID, peeled=schemas.nullable(schemas.OID), at=schemas.nullable(schemas.TIME),
    subject=schemas.TEXT,
)  # fmt: skip
_PERSON = schemas.document("Person", name=schemas.TEXT, email=schemas.TEXT, at=schemas.nullable(schemas.TIME))
_COMMIT = schemas.document(
    "Commit",
    oid=schemas.OID, parents=schemas.listed(schemas.OID), author=_PERSON, committer=_PERSON, subject=schemas.TEXT,
    message=schemas.TEXT,
)  # fmt: skip
_ENTRY = schemas.document(
    "TreeEntry",
    name=schemas.TEXT, mode=schemas.MODE, kind=_KIND, oid=schemas.OID, size=schemas.nullable(schemas.COUNT),
)  # fmt: skip
_DIRECTORY = schemas.document(
    "Directory",
    kind=schemas.one_of("directory"), mode=schemas.MODE, oid=schemas.OID, commit=schemas.OID,
    entries=schemas.listed(_ENTRY),
)  # fmt: skip
_SUBMODULE = schemas.document(
    "Submodule", kind=schemas.one_of("submodule"), mode=schemas.MODE, oid=schemas.OID, commit=schemas.OID
)
_NO_FILE = {
    "oneOf": [_DIRECTORY, _SUBMODULE],
    "description": "A directory has `entries`; a submodule has its own commit as `oid`.",
}
_FILE_HEADERS = {
    "Gitmirror-Kind": Header(_KIND, "What is there."),
    "Gitmirror-Commit": Header(schemas.OID, "The commit that was read."),
    "ETag": Header(schemas.TEXT, "The id of the file's content, quoted.", is_required=False),
}


class MirrorRoutes:
    """Answers requests for what is in a mirror of `node`."""

    def __init__(self, node: NodeOperations) -> None:
        self._node = node

    def operations(self) -> list[Operation]:
        """The routes, in the order of the documentation."""
        return [
            Operation(
                "GET", f"{_REPO}/refs", "list-refs", "Branches, tags and sessions of a mirror", Scope.READ,
                self._refs, {200: Answer("A page of them, by name.", schemas.page(_REF_DOCUMENT))}, _READING,
                query=(
                    Parameter("prefix", schemas.GIVEN_TEXT, "Only names that begin so.", "refs/heads/"), LIMIT, AFTER,
                ),
                reads_mirror=True,
            ),
            Operation(
                "GET", f"{_REPO}/commits", "list-commits", "The history of a ref, newest first", Scope.READ,
                self._commits, {200: Answer("A page of it.", schemas.page(_COMMIT))}, _READING,
                query=(_REF, LIMIT, AFTER),
                reads_mirror=True,
                details="The pages of one history fit together also when the ref moves meanwhile.",
            ),
            Operation(
                "GET", f"{_REPO}/files/{{path}}", "read-file", "A file at a ref", Scope.READ,
                self._file,
                {200: Answer("Its bytes.", media_type=FILE_TYPE, also={JSON: _NO_FILE}, headers=_FILE_HEADERS)},
                (*_READING, problem.TOO_LARGE),
                query=(_REF,),
                reads_mirror=True,
                details="A directory or a submodule is a JSON document instead. `Gitmirror-Kind` says file, "
                "executable, symlink, directory or submodule; `Gitmirror-Commit` which commit was read. A file of any "
                "size is streamed; a directory has at most 10,000 entries.",
            ),
        ]  # fmt: skip

    async def _refs(self, call: Call) -> Any:
        mirror, after = self._node.mirror(call.repo), call.query.get("after")
        page = await list_refs(mirror, call.query.get("prefix", ""), after, limit_of(call))
        return paged(page.items, page.next)

    async def _commits(self, call: Call) -> Any:
        await self._node.bring_ref(call.repo, call.query.get("ref"))
        mirror, after = self._node.mirror(call.repo), call.query.get("after")
        page = await list_commits(mirror, call.query.get("ref"), after, limit_of(call))
        return paged(page.items, page.next)

    async def _file(self, call: Call) -> Any:
        path = call.path["path"].rstrip("/")
        await self._node.bring_ref(call.repo, call.query.get("ref"))
        found = await open_file(self._node.mirror(call.repo), call.query.get("ref"), path)
        if not isinstance(found, FileAtRef):
            return Reply(found, headers={"Gitmirror-Kind": found["kind"], "Gitmirror-Commit": found["commit"]})
        headers = {
            "Content-Length": str(found.size),
            "Gitmirror-Kind": found.kind,
            "Gitmirror-Commit": found.commit,
            "ETag": f'"{found.oid}"',
            # What an agent wrote must not run in the browser of whoever looks at it.
            "X-Content-Type-Options": "nosniff",
            "Content-Disposition": "attachment",
        }
        return Reply(media_type=FILE_TYPE, headers=headers, stream=found.chunks)
