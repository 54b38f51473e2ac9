"""What nodes tell each other: written, read back, and refused when it is not theirs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.fleet.estate import Ledger
from appliance.core.fleet.messages import Attached, NotOurs, SessionEnd, SessionKept, TurnRow
from appliance.core.fleet.names import key_of, name_of
from appliance.core.fleet.wire import read, write
from appliance.core.store.audit import UNKNOWN

ROW = TurnRow(
    uid="a" * 64, node="node-1.example", id=7, repo="acme/homelab", session="s1", commit="b" * 40, old=None,
    base="c" * 40, at="2026-11-27T08:00:00.123Z", subject="A change", commits=1, files_changed=2, insertions=3,
    deletions=4, client="10.0.0.1:5", guest=None, bytes=5, bundle="a" * 64, bundle_size=6, bundle_sha256="d" * 64,
    needs=("c" * 40,), notes={"k": "v"}, attachments=(Attached("log", 1, "e" * 64),),
)  # fmt: skip


def test_a_row_comes_back_as_it_was() -> None:
    assert read(write(ROW), SessionEnd, TurnRow) == ROW


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"uid": "x"}, "uid"),
        ({"repo": "../x"}, "repo"),
        ({"session": "a/b"}, "session"),
        ({"commit": "HEAD"}, "commit"),
        ({"id": True}, "id"),
        ({"id": -1}, "id"),
        ({"subject": "x" * 5000}, "subject"),
        ({"needs": ["--all"]}, "needs"),
        ({"v": 2}, "version"),
        ({"kind": "news"}, "kind"),
        ({"bundle": "f" * 64}, "bundle"),
        ({"attachments": [{"name": "x", "size": 1, "sha256": "../"}]}, "sha256"),
    ],
)
def test_what_is_malformed_is_refused(change: dict[str, object], says: str) -> None:
    document = json.loads(write(ROW)) | change
    with pytest.raises(NotOurs, match=says):
        read(json.dumps(document).encode(), TurnRow)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(data: bytes) -> None:
    with pytest.raises(NotOurs):
        read(data, TurnRow)


def test_unknown_keys_are_for_a_later_version() -> None:
    document = json.loads(write(ROW)) | {"later": 1}
    assert read(json.dumps(document).encode(), TurnRow) == ROW


def test_text_with_control_characters_comes_back() -> None:
    row = replace(ROW, subject="a\tb\x00c\u2028", notes={"k": "\udc80".encode("utf-8", "replace").decode()})
    assert read(write(row), TurnRow) == row


@pytest.mark.slow
@given(st.text(max_size=40))
def test_every_name_has_a_key_of_its_own(name: str) -> None:
    if name.isprintable():
        assert name_of(key_of(name)) == name


def test_keys_are_readable() -> None:
    assert key_of("acme/homelab") == "acme/homelab"
    assert key_of("a/.github") == "a/=2Egithub"
    assert name_of("a/.github") is None


def test_a_session_that_begins_anew_is_not_kept_because_the_old_one_was() -> None:
    """What a restore adds up of the stream is what every node has."""
    turn = replace(ROW, bundle=None, bundle_size=0, bundle_sha256=None, needs=(), attachments=(), notes={})
    name, ledger = (ROW.repo, ROW.session), Ledger()
    ledger.add(1, turn)
    ledger.add(2, SessionKept("b", *name, True))
    assert ledger.kept == {name}
    ledger.add(3, SessionEnd("b", *name, 1, (), "ended"))
    ledger.add(4, replace(turn, uid="c" * 64))
    assert not ledger.kept
    ledger.add(5, replace(turn, uid="d" * 64, client=UNKNOWN))
    assert ledger.kept == {name}, "whose outcome nobody knows"
    ledger.add(6, SessionEnd("b", *name, 4, (), "ended"))
    assert ledger.kept == {name} and list(ledger.turns) == ["d" * 64]


def test_an_end_that_is_said_again_leaves_the_next_session_kept() -> None:
    name, ledger = (ROW.repo, ROW.session), Ledger()
    end = SessionEnd("b", *name, 1, (ROW.uid,), "ended")
    ledger.add(1, ROW)
    ledger.add(2, end)
    ledger.add(3, replace(ROW, uid="c" * 64))
    ledger.add(4, SessionKept("b", *name, True))
    ledger.add(5, end)
    assert ledger.kept == {name} and list(ledger.turns) == ["c" * 64]
