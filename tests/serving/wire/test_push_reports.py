"""Reports: a real git reads our refusals, and we read the reports of a real receive-pack."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core.models import PushDecision, RefCommand, Repo
from appliance.core.serving.wire.pktline import PacketError, packet
from appliance.core.serving.wire.requests import PushRequest, ReportReader, refusal_report
from tests.serving.wire.wire import at, fed, listening, read_first_packet, recorded_push
from tests.support.gitutil import git, git_bytes, git_result
from tests.support.pkt import FLUSH, ZERO, push_bytes
from tests.support.upstream import GitDaemonUpstream

REPO = Repo(1, "acme/widgets", "https://github.com/acme/widgets", None, "cli", None, True, 0)
OID = "1" * 40


# What a refused guest gets.


class Refusing:
    """A git:// port that refuses every push, with the capabilities of a real receive-pack but for some."""

    def __init__(self, repo: Path, advice: tuple[str, ...], without: tuple[bytes, ...] = ()) -> None:
        _, self._advertised, _ = git_bytes("receive-pack", "--http-backend-info-refs", str(repo))
        for name in without:
            self._advertised = self._advertised.replace(name, b"x" * len(name))
        self._advice = advice

    def handle(self, guest: socket.socket) -> None:
        """One push."""
        read_first_packet(guest)
        guest.sendall(self._advertised)
        request = PushRequest()
        while not request.done:
            request.feed(guest.recv(65536))
        refusals = {command.ref: "branches are the upstream's" for command in request.commands}
        ruling = PushDecision("p", REPO, "10.0.0.7", tuple(request.commands), refusals, self._advice)
        guest.sendall(refusal_report(request, ruling))
        guest.shutdown(socket.SHUT_WR)
        while guest.recv(65536):
            pass


ADVICE = ("refused refs/heads/main: x", "", "allowed here: refs/agents/SESSION", "long: " + "é" * 1500)


@pytest.mark.parametrize(
    "without",
    [(), (b"report-status-v2",), (b"side-band-64k",), (b"report-status-v2", b"side-band-64k")],
    ids=["everything", "report-status", "no side band", "report-status and no side band"],
)
def test_git_understands_a_refusal(widgets_bare: Path, without: tuple[bytes, ...]) -> None:
    """Each ref with its reason and, where there is a side band for it, the advice line by line."""
    with listening(Refusing(widgets_bare, ADVICE, without).handle) as port:
        url = f"git://127.0.0.1:{port}/acme/widgets"
        code, _, said = git_result("push", url, "+main~1:refs/heads/x", "+main~2:refs/agents/a", env=at(widgets_bare))
    assert code == 1, said
    assert said.count("[remote rejected]") == 2
    assert said.count("(branches are the upstream's)") == 2
    if b"side-band-64k" not in without:
        assert "remote: gitmirror: refused refs/heads/main: x" in said
        assert "remote: gitmirror: allowed here: refs/agents/SESSION" in said
        assert "gitmirror: \n" not in said, "an empty line of advice is left out"
        assert said.count("é") == 1500


def test_a_refusal_fits_the_old_side_band() -> None:
    """999 bytes a packet, its band included, is what a client that asks for `side-band` takes."""
    request = fed(push_bytes([(ZERO, OID, "refs/heads/" + "x" * 200)], capabilities="report-status side-band"), 1000)
    ruling = PushDecision("p", REPO, "10.0.0.7", tuple(request.commands), {request.commands[0].ref: "y" * 3000}, ADVICE)
    report, at = refusal_report(request, ruling), 0
    while report[at : at + 4] != FLUSH:
        size = int(report[at : at + 4], 16)
        assert size <= 4 + 999
        at += size
    assert at == len(report) - 4


def test_a_guest_that_asked_for_no_report_gets_none() -> None:
    """Advice only; and without a side band nothing at all, since it would be read as something else."""
    for capabilities, expected in (("side-band-64k", 1), ("", 0)):
        request = fed(push_bytes([(ZERO, OID, "refs/heads/x")], capabilities=capabilities), 1000)
        ruling = PushDecision("p", REPO, "10.0.0.7", tuple(request.commands), {"refs/heads/x": "no"}, ("advice",))
        report = refusal_report(request, ruling)
        assert bool(report) == expected
        assert b"ng refs/heads/x" not in report


# What receive-pack answers.


def read_report(answer: bytes, capabilities: frozenset[str], size: int) -> tuple[ReportReader, bytes]:
    """A reader that got `answer` in pieces, and what it let pass."""
    reader = ReportReader(capabilities)
    return reader, b"".join(reader.feed(answer[at : at + size]) for at in range(0, len(answer), size))


@pytest.mark.parametrize("strip", [(), (b"side-band-64k",)], ids=["side band", "none"])
def test_what_receive_pack_reports_is_read(hub: GitDaemonUpstream, tmp_path: Path, strip: tuple[bytes, ...]) -> None:
    """A real report: one ref done, one refused by a hook with words. Messages pass at once, the report is held."""
    hook = hub.path("acme/widgets") / "hooks" / "update"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text('#!/bin/sh\necho "looking at $1"\ncase $1 in */bad) exit 1;; esac\n')
    hook.chmod(0o755)
    work = tmp_path / "work"
    git("clone", "--quiet", str(hub.path("acme/widgets")), str(work))
    recorded = recorded_push(hub, work, "HEAD:refs/agents/good", "HEAD:refs/agents/bad", strip=strip)
    request = fed(recorded.up, 4096)
    assert ("side-band-64k" in request.capabilities) == (not strip)
    for size in (1, 5, 4096):
        reader, passed = read_report(recorded.answer, request.capabilities, size)
        assert reader.outcome(request.commands) == {"refs/agents/good": None, "refs/agents/bad": "hook declined"}
        assert len(passed) + len(reader.held) == len(recorded.answer)
        assert (b"looking at refs/agents/good" in passed) == (not strip)
        assert b"refs/agents/good" not in bytes(reader.held).replace(b"ok refs/agents/good", b"")


def report_of(*lines: str) -> bytes:
    return b"".join(packet(f"{line}\n".encode()) for line in lines) + FLUSH


def banded(report: bytes, size: int) -> bytes:
    return b"".join(packet(b"\1" + report[at : at + size]) for at in range(0, len(report), size)) + FLUSH


SOME = [RefCommand(ZERO, OID, "refs/agents/a"), RefCommand(ZERO, OID, "refs/agents/b")]


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_the_reason_of_the_hook_is_in_the_report(size: int) -> None:
    """For guests that show no messages, and for the log; a ref that the hook did not name keeps git's words."""
    report = report_of(
        "unpack ok", "ng refs/agents/a pre-receive hook declined", "ng refs/agents/b failed to update ref"
    )
    said = b"gitmirror: refused 'refs/agents/a': it is a tag\ngitmirror: refused 'refs/agents/b': it is too large\n"
    bands = packet(b"\2" + said[:30]) + packet(b"\2" + said[30:])
    reader, passed = read_report(bands + banded(report, 900), frozenset({"side-band-64k"}), size)
    assert passed == bands
    assert reader.outcome(SOME) == {"refs/agents/a": "it is a tag", "refs/agents/b": "failed to update ref"}
    explained = report_of("unpack ok", "ng refs/agents/a it is a tag", "ng refs/agents/b failed to update ref")
    assert reader.answer() == banded(explained, 900)


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_report_that_is_cut_off_is_passed_on_as_it_came(cut: int) -> None:
    """It is not made to look whole."""
    said = packet(b"\2gitmirror: refused 'refs/agents/a': it is a tag\n")
    answer = banded(report_of("unpack ok", "ng refs/agents/a pre-receive hook declined")[:-cut], 900)[:-4]
    reader, passed = read_report(said + answer, frozenset({"side-band-64k"}), 4096)
    assert (passed, reader.answer()) == (said, answer)


@pytest.mark.parametrize("band", ["side-band", "side-band-64k", ""])
@pytest.mark.parametrize("size", [1, 3, 900])
def test_the_report_is_the_same_on_every_band(band: str, size: int) -> None:
    """However receive-pack cuts its report into side-band packets."""
    report = report_of("unpack ok", "ok refs/agents/a", "ng refs/agents/b failed to update ref", "option refname x")
    sent = banded(report, size) if band else report
    for piece in (1, 7, 10_000):
        reader, passed = read_report(sent, frozenset({"report-status", band} - {""}), piece)
        assert reader.outcome(SOME) == {"refs/agents/a": None, "refs/agents/b": "failed to update ref"}
        assert (passed, bytes(reader.held)) == (b"", sent)


def test_a_pack_that_was_refused_is_the_reason_of_each_ref() -> None:
    """`unpacker error` says nothing; why it failed stands in the first line."""
    sent = banded(report_of("unpack pack exceeds maximum allowed size", "ng refs/agents/a unpacker error"), 900)
    reader, _ = read_report(sent, frozenset({"side-band-64k"}), 100)
    assert reader.outcome(SOME) == {"refs/agents/a": "unpacker error (pack exceeds maximum allowed size)"}


def test_a_report_that_breaks_off_tells_what_it_told() -> None:
    """receive-pack was killed in the middle of its answer."""
    report = report_of("unpack ok", "ok refs/agents/a", "ok refs/agents/b")
    whole = len(report_of("unpack ok", "ok refs/agents/a")) - len(FLUSH)
    for cut in range(len(report)):
        for capabilities, sent in (
            (frozenset({"side-band-64k"}), banded(report[:cut], 900)),
            (frozenset(), report[:cut]),
        ):
            reader, _ = read_report(sent, capabilities, 7)
            told = reader.outcome(SOME)
            assert set(told.values()) <= {None}
            assert ("refs/agents/a" in told) == (cut >= whole)


def test_a_report_on_refs_that_nobody_pushed_is_left_out() -> None:
    """Only what was asked for has an outcome."""
    reader, _ = read_report(report_of("unpack ok", "ok refs/heads/main", "ok refs/agents/a"), frozenset(), 50)
    assert reader.outcome(SOME) == {"refs/agents/a": None}


def test_a_report_without_end_is_an_error() -> None:
    """Held back is at most a megabyte."""
    reader = ReportReader(frozenset({"side-band-64k"}))
    with pytest.raises(PacketError, match="the report of receive-pack is larger than"):
        for _ in range(100):
            reader.feed(packet(b"\1" + b"x" * 60_000))


@given(st.binary(max_size=200), st.sampled_from(["side-band", "side-band-64k", ""]), st.integers(1, 30))
@settings(max_examples=200)
def test_garbage_for_a_report_tells_nothing(garbage: bytes, band: str, size: int) -> None:
    """A PacketError, or a report that does not say `applied` of what was not reported."""
    try:
        reader, _ = read_report(garbage, frozenset({band}), size)
    except PacketError:
        return
    assert reader.outcome(SOME) == {}
