"""The first packet of git://, the ref commands of a push, and the report of receive-pack."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from appliance.core.models import PushDecision, RefCommand
from appliance.core.serving.wire.pktline import FLUSH, PacketError, PacketSplitter, packet
from appliance.core.text import escape

LARGEST_REQUEST = 4096
UPLOAD_PACK = "git-upload-pack"
RECEIVE_PACK = "git-receive-pack"

_REQUEST = re.compile(rb"(git-[a-z-]+) (/[^\x00-\x1f\x7f]*)")
_VERSION = re.compile(rb"version=([012])")


class RequestError(ValueError):
    """The guest's request is refused. The text is sent to the guest."""


@dataclass(frozen=True)
class DaemonRequest:
    """The first packet of a git:// connection. `path` begins with a slash; `version` is 0, 1 or 2."""

    service: str
    path: str
    version: int = 0

    def replay(self, path: str) -> bytes:
        """The packet for `git daemon`, with the mirror's own path. The host is left out."""
        extra = b"\0version=%d\0" % self.version if self.version else b""
        return packet(f"{self.service} {path}\0".encode("utf-8", "surrogateescape") + extra)


def parse_daemon_request(payload: bytes) -> DaemonRequest:
    """Parses `SERVICE PATH [LF] [NUL [host=H] [NUL [NUL EXTRA]...]]`, as git daemon does. Raises RequestError.

    Like git daemon, it ignores empty extra parameters, with which dulwich ends its list, and accepts a host only as the
    first one. The path must be printable ASCII, because no repository here has another name.
    """
    line, _, extra = payload.partition(b"\0")
    match = _REQUEST.fullmatch(line.removesuffix(b"\n"))
    if match is None:
        raise RequestError("malformed request")
    service = match[1].decode()
    if service not in (UPLOAD_PACK, RECEIVE_PACK):
        raise RequestError(f"{service} is not served here, only fetch and push are")
    if extra[:5].lower() == b"host=":
        extra = extra.partition(b"\0")[2]
    if not match[2].isascii() or extra[:1] not in (b"", b"\0"):
        raise RequestError("malformed request")
    # git daemon joins the parameters with colons, and receive-pack and upload-pack split them at colons again.
    versions = [int(match[1]) for match in map(_VERSION.fullmatch, re.split(rb"[\0:]", extra)) if match]
    return DaemonRequest(service, match[2].decode("ascii"), max(versions, default=0))


MOST_COMMAND_BYTES = 8 * 2**20
"""The most bytes of ref commands that are read. A push of 50,000 refs has 5 MB of commands."""
LONGEST_COMMAND = 4096
"""The most bytes of one ref command. No file system accepts a longer ref."""
MOST_COMMANDS = 100_000
"""The most ref commands that are counted. Reading stops there, even if each has only four bytes."""
KEPT_COMMANDS = 32
"""Ref commands that are stored: more than the policy allows. The rest of a push, which is refused, is only counted."""
MOST_SHALLOW = 16_384
"""The most shallow lines (870 KB); all are passed on. A clone sends one per commit at which its history ends."""

MOST_OPTIONS = 256
"""The most push options of one push."""
MOST_OPTION_BYTES = 512 * 2**10
"""The most bytes of push options. The hooks get them as environment variables, of which Linux takes 2 MiB."""

_SHALLOW = re.compile(rb"shallow (?:[0-9a-f]{40}|[0-9a-f]{64})")
_OPTIONS = "push-options"
_CAPABILITIES = frozenset({"report-status", "report-status-v2", "side-band", "side-band-64k", _OPTIONS})
"""The capabilities of a guest that change the format of its request or of its response."""


@dataclass
class PushRequest:
    """Parses the head of a push as it arrives. Feed it until `done`.

    `raw` is everything up to and including the flush, to be passed on unchanged. It is empty if the push is refused
    anyway, because 10 KB of gzip can hold megabytes of commands. `rest` is the first bytes after the flush. With the
    capability push-options, these `options` follow the commands, and end with a flush of their own.
    """

    commands: list[RefCommand] = field(default_factory=list)
    total: int = 0
    capabilities: frozenset[str] = frozenset()
    raw: bytearray = field(default_factory=bytearray)
    fault: str | None = None
    done: bool = False
    options: list[bytes] = field(default_factory=list)
    _splitter: PacketSplitter = field(default_factory=PacketSplitter)
    _received: int = 0
    _shallow: int = 0
    _listed: bool = False
    """Whether the commands are complete, and options follow."""
    _option_bytes: int = 0

    @property
    def held(self) -> int:
        """The bytes that it holds in memory."""
        return len(self.raw) + self._option_bytes

    @property
    def rest(self) -> bytes:
        """The bytes after the flush: the beginning of the pack."""
        return self._splitter.rest

    def feed(self, data: bytes) -> None:
        """Parses more bytes. Raises PacketError if there is no ref command yet to refuse; otherwise sets `fault`."""
        self._received += len(data)
        try:
            for payload in self._splitter.feed(data):
                if payload is None:
                    self._keep(FLUSH)
                    if not self._listed and self._options_follow:
                        self._listed = True
                        continue
                    self.done = True
                    return
                if self._listed:
                    self._take_option(payload)
                else:
                    self._take(payload)
            if self._received > MOST_COMMAND_BYTES:
                raise PacketError(f"more than {MOST_COMMAND_BYTES} bytes of ref commands")
        except PacketError as error:
            self.break_off(str(error))

    def more(self, data: bytes) -> None:
        """Adds bytes that follow the flush."""
        self._splitter.append(data)

    def break_off(self, reason: str) -> None:
        """Ends the parsing with a `fault`. Raises PacketError instead if there is no ref command yet to refuse."""
        if not self.total:
            raise PacketError(reason)
        self.fault, self.done = reason, True
        self.raw.clear()

    def _keep(self, data: bytes) -> None:
        if self.fault or self.total > KEPT_COMMANDS:
            self.raw.clear()
        else:
            self.raw += data

    @property
    def _options_follow(self) -> bool:
        """Whether options are to be read: those of a push that is refused anyway are drained with its pack."""
        return _OPTIONS in self.capabilities and not self.fault and self.total <= KEPT_COMMANDS

    def _take_option(self, payload: bytes) -> None:
        self._option_bytes += len(payload)
        if len(self.options) >= MOST_OPTIONS or self._option_bytes > MOST_OPTION_BYTES:
            self.options.clear()
            raise PacketError(f"more than {MOST_OPTIONS} push options, or more than {MOST_OPTION_BYTES} bytes of them")
        self.options.append(payload.removesuffix(b"\n"))
        self._keep(packet(payload))

    def _take(self, payload: bytes) -> None:
        if payload.startswith(b"shallow "):
            self._shallow += 1
            if self._shallow > MOST_SHALLOW:
                raise PacketError("too many shallow lines")
            if not _SHALLOW.fullmatch(payload.removesuffix(b"\n")):
                raise PacketError("malformed shallow line")
            self._keep(packet(payload))
            return
        self.total += 1
        if self.total > MOST_COMMANDS:
            raise PacketError(f"more than {MOST_COMMANDS} ref commands")
        if self.total <= KEPT_COMMANDS:
            self._take_command(payload)
            self._keep(packet(payload))

    def _take_command(self, payload: bytes) -> None:
        text, _, capabilities = payload.removesuffix(b"\n").partition(b"\0")
        if self.total == 1:
            names = capabilities[:LONGEST_COMMAND].decode("utf-8", "replace").split()
            self.capabilities = _CAPABILITIES.intersection(names)
        parts = text[:LONGEST_COMMAND].decode("utf-8", "surrogateescape").split(" ", 2)
        if len(parts) != 3 or not parts[2] or "\0" in parts[2] or len(payload) > LONGEST_COMMAND:
            # push-cert lines end up here too: certificates are not advertised, so no guest may send one.
            self.fault = "malformed ref command"
            parts = ["0" * 40, "0" * 40, text[:200].decode("utf-8", "replace")]
        self.commands.append(RefCommand(*parts))


def refusal_report(request: PushRequest, decision: PushDecision) -> bytes:
    """The response to a refused push: advice for the guest's terminal, and git's report on each ref."""
    report = b"".join(
        [
            packet(b"unpack ok\n"),
            *(
                packet(f"ng {command.ref} {decision.refusals[command.ref]}\n".encode("utf-8", "surrogateescape"))
                for command in decision.commands
            ),
            FLUSH,
        ]
    )
    side_band = request.capabilities & {"side-band-64k", "side-band"}
    reported = bool(request.capabilities & {"report-status", "report-status-v2"})
    if not side_band:
        return report if reported else b""
    advice = "".join(f"gitmirror: {escape(line)}\n" for line in decision.advice if line)
    messages = _banded(b"\2", advice.encode())
    return messages + (_banded(b"\1", report) if reported else b"") + FLUSH


def _banded(band: bytes, data: bytes) -> bytes:
    """Data on a side band, in packets of at most 900 bytes, because the older side-band allows at most 999."""
    return b"".join(packet(band + data[at : at + 900]) for at in range(0, len(data), 900))


_DECLINED = "pre-receive hook declined"
_HOOK_SAID = re.compile(r"^gitmirror: refused '(\S+)': (.+)$", re.MULTILINE)
"""What `recording/pre_receive.py` prints for each ref."""


class ReportReader:
    """Reads receive-pack's output on its way to the guest, and separates its report.

    The report (side band 1, or everything if there is no side band) is held back until the outcome is in the audit log,
    so that no guest sees the outcome of a push that is not logged. Progress and messages (bands 2 and 3) pass.

    Of a ref that our hook refused, git reports only that the hook declined. The reason, which the hook prints, replaces
    that, because programs that use a library often show the report and no messages.
    """

    MOST = 2**20

    def __init__(self, capabilities: frozenset[str]) -> None:
        self._side_band = bool(capabilities & {"side-band-64k", "side-band"})
        self._splitter = PacketSplitter()
        self._report = bytearray()
        self._said = bytearray()
        self.held = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Takes output of receive-pack; returns what to pass on now. Raises PacketError if it is malformed."""
        if not self._side_band:
            self._hold(data)
            self._report += data
            return b""
        passed = bytearray()
        for payload in self._splitter.feed(data):
            if payload is None:
                self._hold(FLUSH)
            elif payload[:1] == b"\1":
                self._hold(packet(payload))
                self._report += payload[1:]
            else:
                passed += packet(payload)
                if payload[:1] == b"\2" and len(self._said) < self.MOST:
                    self._said += payload[1:]
        return bytes(passed)

    def _hold(self, data: bytes) -> None:
        self.held += data
        if len(self.held) > self.MOST:
            raise PacketError(f"the report of receive-pack is larger than {self.MOST} bytes")

    def answer(self, withdrawn: Mapping[str, str] = MappingProxyType({})) -> bytes:
        """What was held back, for the guest. Refs in `withdrawn` were put back, for the reason given there."""
        report = bytes(self._report)
        lines = list(_lines(report))
        explained = _told_of(withdrawn, self._explain(lines))
        if explained == lines or not report.endswith(FLUSH):
            return bytes(self.held)
        report = b"".join(packet(f"{line}\n".encode("utf-8", "surrogateescape")) for line in explained) + FLUSH
        if not self._side_band:
            return report
        advice = "".join(f"gitmirror: {ref}: {reason}\n" for ref, reason in withdrawn.items())
        return _banded(b"\2", advice.encode()) + _banded(b"\1", report) + FLUSH

    def _explain(self, lines: Sequence[str]) -> list[str]:
        """The lines of a report, with the hook's own reasons."""
        reasons = dict(_HOOK_SAID.findall(self._said.decode("utf-8", "replace")))
        declined = {f"ng {ref} {_DECLINED}": f"ng {ref} {reason}" for ref, reason in reasons.items()}
        return [declined.get(line, line) for line in lines]

    def outcome(self, commands: Sequence[RefCommand]) -> dict[str, str | None]:
        """The report on each ref, as far as it was received: None for success, otherwise the reason."""
        reported: dict[str, str | None] = {}
        unpack = "ok"
        for line in self._explain(list(_lines(bytes(self._report)))):
            word, _, tail = line.partition(" ")
            if word == "unpack":
                unpack = tail
            elif word == "ok":
                reported[tail] = None
            elif word == "ng":
                ref, _, reason = tail.partition(" ")
                reported[ref] = reason if unpack == "ok" else f"{reason} ({unpack})"
        return {ref: reason for ref, reason in reported.items() if any(command.ref == ref for command in commands)}


def _told_of(withdrawn: Mapping[str, str], lines: Sequence[str]) -> list[str]:
    """The lines of a report, without the success of refs that were put back, and without what a git says of it."""
    told: list[str] = []
    skip = False
    for line in lines:
        ref = line.removeprefix("ok ")
        if line.startswith("ok ") and ref in withdrawn:
            told.append(f"ng {ref} {withdrawn[ref]}")
            skip = True
        elif not (skip and line.startswith("option ")):
            told.append(line)
            skip = False
    return told


def _lines(report: bytes) -> Iterator[str]:
    try:
        for payload in PacketSplitter().feed(report):
            if payload is not None:
                yield payload.decode("utf-8", "surrogateescape").rstrip("\n")
    except PacketError:
        return


def is_refusal(first: bytes) -> bool:
    """Whether git daemon's first output is a refusal. Its text names the mirror's directory, so never pass it on."""
    return first[4:8] == b"ERR "
