"""Ends, here and elsewhere, of sessions in which several nodes have turns: nothing of them is left in the mirror."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext

from appliance.core.fleet.messages import SessionEnd, TurnRow
from appliance.core.fleet.names import FleetNames
from appliance.core.fleet.wire import read, write
from appliance.core.store.fleet_turns import FIRST_AWAY
from tests.support.fleet import TestFleet
from tests.support.gitutil import commit_files, git, refs, wait_until
from tests.support.nats import NatsCluster
from tests.support.serve import Serve

REPO = "acme/widgets"
NAMES = FleetNames("ends")
AGENTS, TURNS = "refs/agents/", "refs/gitmirror/turns/"


def publish(nats: NatsCluster, message: TurnRow | SessionEnd) -> int:
    async def send(context: JetStreamContext) -> int:
        return (await context.publish(NAMES.turns_of("b"), write(message))).seq

    return nats.ask(send)


def rows_sent(nats: NatsCluster) -> list[TurnRow | SessionEnd]:
    """What the node sent, without keeps and attachments."""

    async def look(context: JetStreamContext) -> list[TurnRow | SessionEnd]:
        info = await context.stream_info(NAMES.turns)
        found: list[TurnRow | SessionEnd] = []
        for seq in range(info.state.first_seq, info.state.last_seq + 1):
            try:
                message = await context.get_msg(NAMES.turns, seq)
                sent: Any = read(message.data, TurnRow, SessionEnd)
            except Exception:
                continue
            found.append(sent)
        return found

    return nats.ask(look)


def row(number: int, session: str, commit: str, old: str | None) -> TurnRow:
    return TurnRow(
        uid=f"{number:064x}", node="b", id=number, repo=REPO, session=session, commit=commit, old=old, base=None,
        at="2026-11-27T08:00:00.123Z", subject="A change", commits=1, files_changed=2, insertions=3, deletions=4,
        client="10.0.0.1:5", guest=None, bytes=5, bundle=None, bundle_size=0, bundle_sha256=None,
    )  # fmt: skip


def turns_of(serve: Serve, session: str) -> list[str | None]:
    try:
        return [turn["node"] for turn in serve.cli_json("session", "show", REPO, session)["turns"]]
    except Exception:
        return []


def left_of(serve: Serve, session: str) -> set[str]:
    return {ref for ref in refs(serve.mirror(REPO)) if ref == f"{AGENTS}{session}" or ref.startswith(TURNS)}


@pytest.mark.slow
def test_nothing_is_left_of_a_session_of_two_nodes(tmp_path: Path, nats: NatsCluster) -> None:
    """Whichever of them ends it; its ref is at the other node's turn, and that is no push that goes on."""
    upstream, work = tmp_path / "up.git", tmp_path / "up"
    git("init", "-q", "-b", "main", str(work), cwd=tmp_path)
    commit_files(work, {"README": "hello\n"}, "start")
    git("clone", "-q", "--bare", str(work), str(upstream), cwd=tmp_path)
    with TestFleet(tmp_path, nats, ["a"], fleet={"name": "ends"}) as nodes:
        serve = nodes.start()["a"]
        serve.cli("add-repo", str(upstream), "--name", REPO)
        serve.wait_for_repo(REPO)
        guest = serve.clone(tmp_path / "guest", REPO)
        for number, session in enumerate(("ended-there", "dropped-here"), 1):
            own = commit_files(guest, {"a": f"{number}\n"}, "a turn")
            git("push", "-q", "origin", f"HEAD:{AGENTS}{session}", cwd=guest)
            theirs = commit_files(guest, {"b": f"{number}\n"}, "another node's")
            git("push", "-q", "origin", "HEAD:refs/agents/scratch", "--force", cwd=guest)
            wait_until(
                lambda own=own: any(getattr(each, "commit", "") == own for each in rows_sent(nats)),  # type: ignore[misc]
                timeout=20,
                message="the node's own turn is in the stream",
            )
            last = publish(nats, row(number, session, theirs, own))
            wait_until(lambda session=session: turns_of(serve, session) == ["a", "b"], timeout=60, message="both")  # type: ignore[misc]
            said = f"session {session} has turns of the nodes a, b"
            wait_until(lambda said=said: said in serve.log(), message="it is said")  # type: ignore[misc]
            # As if the turn had been brought.
            git("update-ref", f"{TURNS}{FIRST_AWAY + number - 1}", theirs, cwd=serve.mirror(REPO))
            git("update-ref", f"{AGENTS}{session}", theirs, cwd=serve.mirror(REPO))
            if session == "ended-there":
                publish(nats, SessionEnd("b", REPO, session, last, (), "ended by an operator"))
            else:
                serve.cli("session", "drop", REPO, session, "--yes")
            wait_until(
                lambda session=session, number=number: not {  # type: ignore[misc]
                    f"{AGENTS}{session}", f"{TURNS}{FIRST_AWAY + number - 1}"
                } & left_of(serve, session) and not turns_of(serve, session),
                timeout=20,
                message="it is gone",
            )  # fmt: skip
        serve.cli("audit", "verify")
        wait_until(
            lambda: any(isinstance(each, SessionEnd) and each.session == "dropped-here" for each in rows_sent(nats)),
            timeout=20,
            message="the others are told",
        )
        assert sum(isinstance(each, SessionEnd) and each.session == "ended-there" for each in rows_sent(nats)) == 1
