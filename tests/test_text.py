"""Text of strangers: whatever it is, no output lets a control character through, and nothing else is changed."""

from __future__ import annotations

import ast
import io
import logging
import os
import re
import socket
import subprocess
import sys
from http import HTTPStatus
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from appliance.cli import output
from appliance.cli.log_format import LogFormatter
from appliance.cli.main import cli
from appliance.core.daemon.systemd import Notifier
from appliance.core.errors import GitmirrorError
from appliance.core.git.diff_output import DiffText
from appliance.core.models import PushDecision, RefCommand, Repo
from appliance.core.serving.net.http import HttpError
from appliance.core.serving.wire.requests import PushRequest, refusal_report
from appliance.core.text import escape, escape_patch
from appliance.tui.data.diffs import diff_lines
from appliance.tui.text import cut_pieces, plain, wrapped
from tests.support.serve import ROOT
from tests.support.terminal import EVIL, unsafe, unsafe_bytes

HOSTILE = st.text(st.one_of(st.characters(), st.sampled_from([*EVIL, "\n", "\r", "\t", "\0", "\x7f", "\udc9b", "a"])))
LINES = st.lists(st.binary(max_size=40) | HOSTILE.map(lambda text: text.encode("utf-8", "surrogatepass")), max_size=8)
REPO = Repo(1, "acme/widgets", "https://example.com/acme/widgets", None, "cli", None, True, 0.0)


@given(HOSTILE)
@example(EVIL)
def test_escaped_text_has_no_control_character(text: str) -> None:
    """It can be encoded, is the same when escaped twice, and keeps what was safe."""
    safe = escape(text)
    assert not unsafe(safe, allowed="")
    safe.encode()
    assert escape(safe) == safe
    assert not unsafe(escape(text, keep="\n"))
    assert escape(text, keep="\n").count("\n") == text.count("\n")


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Cf", "Zl", "Zp"])))
def test_safe_text_is_left_alone(text: str) -> None:
    """Letters of any script, symbols, spaces of any width."""
    assert escape(text) == text


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("\x1b[31mred\x1b[m", "\\x1b[31mred\\x1b[m"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("\x9b31m", "\\x9b31m"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), "caf\\xe9"),
        ("👩\u200d💻 \u00a0 \ue0b0", "👩\u200d💻 \u00a0 \ue0b0"),
    ],
)
def test_escapes_are_those_that_programmers_know(text: str, seen: str) -> None:
    """And what joins an emoji, or glues words together, is none."""
    assert escape(text) == seen


@given(LINES)
def test_an_escaped_patch_has_no_control_character(lines: list[bytes]) -> None:
    """But tabs and line ends; what has none is the same byte for byte, in whatever encoding."""
    data = b"".join(line.replace(b"\n", b"") + b"\n" for line in lines)
    safe = escape_patch(data)
    assert not unsafe_bytes(safe.replace(b"\r\n", b"\n"), allowed="\n\t")
    assert safe.count(b"\n") == data.count(b"\n")
    if not unsafe_bytes(data.replace(b"\r\n", b"\n"), allowed="\n\t"):
        assert safe == data


@given(LINES, st.booleans(), st.booleans())
def test_a_rendered_diff_has_only_our_colours(lines: list[bytes], colour: bool, patch: bool) -> None:
    """Whatever the lines are; and one that had to be escaped says so, before the first that was."""
    given = [line.replace(b"\n", b"") + b"\n" for line in lines]
    shown = DiffText(colour=colour, patch=patch)
    rendered = shown.render(given)
    if colour:
        rendered = re.sub(rb"\x1b\[(?:1|31|32|36)?m", b"", rendered)
    assert not unsafe_bytes(rendered.replace(b"\r\n", b"\n"), allowed="\n\t")
    assert shown.escaped == (escape_patch(b"".join(given)) != b"".join(given))
    assert rendered.startswith(b"! gitmirror: ") or b"\n! gitmirror: " in rendered or not (shown.escaped and patch)


def test_a_diff_is_coloured_by_what_its_lines_are() -> None:
    """Content that looks like the head of a file, or like a hunk, is content."""
    diff = b"diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,2 +1,3 @@ def f\n--- a\n+++ b\n+@@ c\n d\r\n\\ No newline\n"
    rendered = DiffText(colour=True, patch=True).render(diff.splitlines(keepends=True)).decode().split("\n")
    assert rendered == [
        "\x1b[1mdiff --git a/x b/x\x1b[m", "\x1b[1m--- a/x\x1b[m", "\x1b[1m+++ b/x\x1b[m",
        "\x1b[36m@@ -1,2 +1,3 @@\x1b[m def f", "\x1b[31m--- a\x1b[m", "\x1b[32m+++ b\x1b[m", "\x1b[32m+@@ c\x1b[m",
        " d\r", "\\ No newline", "",
    ]  # fmt: skip
    stat = DiffText(colour=True, patch=False).render([b" a | 3 ++-\n"])
    assert stat == b" a | 3 \x1b[32m++\x1b[m\x1b[31m-\x1b[m\n"


@settings(deadline=None)
@given(HOSTILE)
@example(EVIL)
def test_commands_print_no_control_character(text: str) -> None:
    """Lines, rows, tables, messages, questions, errors with their hints, and click's own complaints."""

    @click.command(cls=output.ReportingGroup)
    def group() -> None:
        """A group."""

    @group.command()
    def run() -> None:
        output.print_line(text)
        output.print_cells([text, None, 1])
        output.print_table(["A", "B"], [[text, 1], [None, text]])
        output.print_json({"a": text})
        output.print_json_line(text)
        output.say(text)
        output.ask(text)
        raise GitmirrorError(text, hint=f"see {text}")

    @group.command()
    def complain() -> None:
        raise click.UsageError(text)

    done = CliRunner().invoke(group, ["run"], input="n\n")
    assert done.exit_code == 1, done.exception
    assert done.stdout.count("\n") == 9, "two lines, a table of three, a document of three and one of one"
    assert "error: " in done.stderr and "hint: " in done.stderr
    complaint = CliRunner().invoke(group, ["complain"])
    assert complaint.exit_code == 2
    for each in (done.stdout, done.stderr, complaint.stderr):
        assert not unsafe(each)


def test_an_option_that_does_not_exist_is_quoted_safely() -> None:
    """Before the command, and behind it."""
    for words in ([f"--{EVIL}"], ["status", f"--{EVIL}"], [EVIL], ["token", "revoke", EVIL]):
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 2
        assert not unsafe(done.stderr)


@given(HOSTILE)
@example("x\nERROR appliance: all sessions were deleted")
def test_a_log_record_is_one_line_and_its_traceback_is_indented(text: str) -> None:
    """Whatever is in the message, in an argument, or in the words of the exception."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LogFormatter.for_environment({"JOURNAL_STREAM": "1:2"}))
    log = logging.Logger("test")
    log.addHandler(handler)
    log.info("%s", text)
    assert stream.getvalue().count("\n") == 1
    try:
        raise ValueError(text)
    except ValueError:
        log.exception("it failed: %s", text, stack_info=True)
    written = stream.getvalue()
    assert not unsafe(written)
    assert [line for line in written.split("\n") if not line.startswith("  ")] == [
        f"INFO test: {escape(text)}", f"ERROR test: it failed: {escape(text)}", "",
    ]  # fmt: skip


@given(HOSTILE)
def test_guests_are_answered_without_control_characters(text: str) -> None:
    """An HTTP error, and the lines that git prints behind `remote: `."""
    assert not unsafe(HttpError(HTTPStatus.NOT_FOUND, f"{text} is not mirrored here\n").text)
    command = RefCommand("0" * 40, "1" * 40, "refs/heads/x")
    ruling = PushDecision("p", REPO, "10.0.0.1", (command,), {"refs/heads/x": "no"}, (f"refused {text}",))
    report = refusal_report(PushRequest(capabilities=frozenset({"side-band-64k"})), ruling)
    said = b"".join(re.findall(rb"\x02((?:(?![0-9a-f]{4}[\x01\x02]|0000).)*)", report, re.DOTALL))
    assert said.startswith(b"gitmirror: refused ") and not unsafe_bytes(said)


def test_systemds_line_has_no_control_character(tmp_path: Path) -> None:
    """`systemctl status` prints it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        notifier = Notifier(str(tmp_path / "notify"))
        notifier.status(f"1 failing: {EVIL}\nREADY=0")
        said = systemd.recv(4096)
        notifier.close()
    assert said.startswith(b"STATUS=1 failing: \\x1b]0;owned") and not unsafe_bytes(said, allowed="")


@settings(deadline=None)
@given(HOSTILE, st.integers(0, 40), st.booleans())
def test_the_live_view_draws_no_control_character(text: str, width: int, tail: bool) -> None:
    """Neither whole nor cut, nor as the text of a diff."""
    assert plain(text).isprintable()
    assert all(piece.isprintable() for piece, _ in cut_pieces([(text, ""), (text, "dim")], width, tail=tail))
    assert all(line.isprintable() for line in wrapped(text, 20, 3))
    diff = "diff --git a/x b/x\nnew file mode 100644\n@@ -0,0 +1 @@ " + text + "\n" + f"+{text}\n"
    assert all(piece.isprintable() for line in diff_lines(diff, "x.py") for piece, _ in line.pieces)


ALONE = {"appliance.cli.output", "appliance.cli.guest", "appliance.cli.main"}
"""What may print by itself: what all others use, the guest kit, which is a program, and our own licences."""


@pytest.mark.parametrize("path", sorted((ROOT / "appliance" / "cli").glob("*.py")), ids=lambda path: path.stem)
def test_commands_print_through_output(path: Path) -> None:
    """So that no new command forgets to escape."""
    if f"appliance.cli.{path.stem}" in ALONE:
        return
    called = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    printing = {"print", "sys.stdout.write", "click.echo", "click.secho", "click.confirm", "click.prompt"}
    assert not called & (printing | {"click.echo_via_pager", "json.dumps"})


def test_progress_draws_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upstream makes git print any line behind `remote: `; only words and numbers of a bar are taken from it."""
    from appliance.cli.progress import CloneProgress

    drawn = io.StringIO()
    monkeypatch.setattr(drawn, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", drawn)
    progress = CloneProgress()
    for line in (f"remote: Counting objects: {EVIL}%", "remote: Counting objects: " + "9" * 5000 + "%", EVIL):
        progress.take(line)
    progress.take("remote: Counting objects: 999% (1/1)" + EVIL)
    told = drawn.getvalue().split("\r\x1b[K")[1:]
    assert told and all(re.fullmatch(r"counting objects +[0-9,]{0,20}(\[#{24}\] 100%)? *0s", line) for line in told)


def test_lines_for_the_journal_have_the_priority_of_their_level(tmp_path: Path) -> None:
    """Each line has it, because the journal stores each as an entry. stderr that was redirected since has none."""
    output = tmp_path / "stderr"
    program = (
        "import logging, os, sys\n"
        "from appliance.cli.log_format import LogFormatter\n"
        "handler = logging.StreamHandler(sys.stderr)\n"
        "handler.setFormatter(LogFormatter.for_environment(os.environ))\n"
        "logging.basicConfig(level=logging.DEBUG, handlers=[handler])\n"
        "for level in ('debug', 'info', 'warning', 'error', 'critical'):\n"
        "    getattr(logging.getLogger('x'), level)(level)\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    logging.getLogger('x').exception('it failed')\n"
    )
    for is_journal in (True, False):
        with output.open("w") as file:
            status = os.fstat(file.fileno())
            stream = f"{status.st_dev}:{status.st_ino + (0 if is_journal else 1)}"
            env = {**os.environ, "JOURNAL_STREAM": stream, "PYTHONPATH": str(ROOT)}
            subprocess.run([sys.executable, "-c", program], stderr=file, env=env, check=True)
        lines = output.read_text().splitlines()
        if is_journal:
            words = ("<7>DEBUG", "<6>INFO", "<4>WARNING", "<3>ERROR", "<2>CRITICAL")
            assert [line.split()[0] for line in lines[:5]] == list(words)
            assert len(lines) > 7 and all(line.startswith("<3>") for line in lines[5:])
        else:
            assert lines[0].startswith("DEBUG") and not any(line.startswith("<") for line in lines)
