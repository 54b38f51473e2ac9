"""How things are said: times, numbers, cut texts; what a guest writes never reaches the terminal as it is."""

from __future__ import annotations

import itertools

import pytest
from rich.cells import cell_len

from appliance.core.models import Health, Repo, State
from appliance.core.node.queries import RepoView
from appliance.tui.data.activity import ActivityFeed, moved_words
from appliance.tui.data.diffs import diff_lines
from appliance.tui.data.model import Rates
from appliance.tui.screens.repo_columns import explain
from appliance.tui.text import (
    STATES,
    bar,
    cell,
    cut_pieces,
    fit,
    lags,
    percent,
    plain,
    span,
    spark,
    took,
    wrapped,
)
from appliance.tui.widgets.columns import EXTRA, GAP, Column, lay_out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "never"), (0, "0s"), (59.9, "59s"), (60, "1m"), (75, "1m 10s"), (599, "9m 50s"), (600, "10m"),
        (3599, "59m"), (3600, "1h"), (18_120, "5h 2m"), (86_400, "1d"), (273_600, "3d 4h"), (900_000, "10d"),
        (86_400 * 365 * 6, "6y"),
    ],
)  # fmt: skip
def test_spans_are_short(seconds: float | None, text: str) -> None:
    """Six columns at most, so that a column of them never jumps."""
    assert span(seconds) == text
    assert len(text) <= 6


def test_numbers_say_no_more_than_is_so() -> None:
    """Less than all is never 100%, something is never nothing."""
    assert (percent(0, 0), percent(999, 1000), percent(1000, 1000), percent(1, 3)) == ("-", "99%", "100%", "33%")
    assert (bar(0, 10, 4), bar(1, 10**9, 4), bar(10**9 - 1, 10**9, 4), bar(1, 1, 4)) == ("────", "━───", "━━━─", "━━━━")
    assert (took(0.0001), took(0.0123), took(1.234), took(38.2), took(260)) == (
        "<1 ms", "12 ms", "1.23 s", "38 s", "4m 20s",
    )  # fmt: skip


def test_texts_are_cut_with_an_ellipsis() -> None:
    """In columns of the terminal, where a wide character takes two."""
    assert (fit("abc", 5), fit("abcdef", 4), fit("日本語", 4), fit("abc", 0)) == ("abc  ", "abc…", "日… ", "")
    assert all(cell_len(fit("日本語 abc", width)) == width for width in range(12))
    assert cut_pieces([("src/server/", "dim"), ("main.py", "")], 12, tail=True) == (("…ver/", "dim"), ("main.py", ""))
    assert cut_pieces([("abc", ""), ("def", "")], 3) == (("ab…", ""),)
    assert wrapped("one two three four five", 10, 2) == ["one two", "three fou…"]


def test_what_a_guest_writes_is_harmless() -> None:
    """No control character, no direction mark, no half of a pair gets through."""
    said = plain("a\x1b[31m\u202eb\tc\udc80\x9b2J\n")
    assert said.isprintable() and said == "a\\x1b[31m\\u202eb c\\x80\\x9b2J\\n"
    [line] = [
        line for line in diff_lines("--- a\n+++ b\n@@ -0,0 +1 @@\n+x\x1b]0;y\x07\tz\r", "a.txt") if line.mark == "+"
    ]
    assert "".join(text for text, _ in line.pieces) == "x\\x1b]0;y\\x07 z"


def test_columns_go_by_their_rank_and_never_stick_out() -> None:
    """At any width; those of rank 0 stay to the last."""
    columns = [Column[int](f"C{n}", lambda _: cell(""), least, rank, grows=n == 0) for n, (least, rank) in enumerate(
        [(20, 0), (10, 0), (6, 1), (8, 4), (8, 3)]
    )]  # fmt: skip
    for width in range(1, 120):
        laid = lay_out(columns, width)
        assert [n for n, _, _ in laid][:2] == [0, 1]
        end = laid[-1][1] + laid[-1][2]
        assert end <= width or width < 1 + GAP + 10
        assert all(left[1] + left[2] + GAP == right[1] for left, right in itertools.pairwise(laid))
    assert [n for n, _, _ in lay_out(columns, 60)] == [0, 1, 2, 3, 4]
    assert [n for n, _, _ in lay_out(columns, 52)] == [0, 1, 2, 4]


def test_a_name_is_whole_before_an_extra_column_is_shown() -> None:
    """One of rank 5 or more has to wait until those of rank 0 have all they want."""
    name, number, extra = (
        Column[int]("NAME", lambda _: cell(""), 10, 0, 30),
        Column[int]("NUMBER", lambda _: cell(""), 6, 4),
        Column[int]("EXTRA", lambda _: cell(""), 5, EXTRA),
    )
    assert lay_out([name, number, extra], 44) == [(0, 0, 30), (1, 32, 6)]
    assert lay_out([name, number, extra], 45) == [(0, 0, 30), (1, 32, 6), (2, 40, 5)]
    assert lay_out([name, number, extra], 18) == [(0, 0, 10), (1, 12, 6)]


def test_states_differ_without_colour() -> None:
    """Each has a shape and a word of its own."""
    assert set(STATES) == set(State)
    assert len({shape for shape, _ in STATES.values()}) == len(State)


def test_the_trend_is_how_far_behind_it_was() -> None:
    """At each refresh, since the last good one began."""
    recent = [(0.0, 1.0, "moved"), (60.0, 1.0, "unchanged"), (120.0, 9.0, "failed"), (180.0, 9.0, "failed")]
    assert lags(recent) == [60.0, 60.0, 120.0]
    assert spark(lags(recent), 120, 5) == "  ▅▅█"


def test_rates_are_of_the_last_minute() -> None:
    """And the hits of the last ten, without fetches that could not be kept."""
    rates = Rates()
    for at, way in ((1000.0, "hit"), (1055.0, "miss"), (1055.0, "direct"), (1059.0, "snapshot")):
        rates.add("a/b", at, way)
    assert (rates.per_minute("a/b", 1059), rates.per_minute("a/b", 1061), rates.per_minute("c/d", 1059)) == (4, 3, 0)
    assert rates.hits("a/b") == (2, 3)
    rates.forget_old(1059 + 660)
    assert rates.hits("a/b") == (0, 0) and not rates.slots


def test_a_hydration_that_goes_on_becomes_one_that_ended() -> None:
    """In its place; one of a serve that was killed is forgotten, since nobody tells its end."""
    activity, fetch = ActivityFeed(), {"want": "1" * 40, "shape": "depth 1", "client": "c", "protocol": "git"}
    began = {"event": "hydrating", "at": "2026-01-31T12:00:00.000Z", "repo": "a/b", **fetch}
    ended = {
        "event": "hydrated",
        "at": "2026-01-31T12:00:01.000Z",
        "repo": "a/b",
        "way": "hit",
        "bytes": 9,
        "seconds": 1.0,
    }
    activity.take([began, began, ended | fetch])
    assert [row.open for row in activity.rows] == [True, False]
    assert activity.rows[1].bytes == 9
    activity.forget_open()
    assert [row.open for row in activity.rows] == [False]


def test_what_an_event_told_is_not_listed_again_from_the_database() -> None:
    """Though the two differ in the time by a little; what happened before is there."""
    at, activity = "2026-01-31T12:00:01.500Z", ActivityFeed()
    refresh: dict[str, object] = {"repo": "a/b", "moved": [], "error": None}
    push = {"repo": "a/b", "ref": "refs/agents/s", "session": "s", "new": "1" * 40, "client": "c"}
    activity.take([
        {"event": "refreshed", "at": at, "seconds": 0.5, **refresh}, {"event": "recorded", "at": at, **push},
    ])  # fmt: skip
    attempt = {**push, "verdict": "accepted", "outcome": "applied", "reason": None}
    activity.fill(
        (),
        [{"id": n, "at": f"2026-01-31T12:00:0{n}.400Z", **attempt} for n in range(2)],
        [{"id": n, "started_at": f"2026-01-31T12:00:0{n}.000Z", "duration": 0.4989, **refresh} for n in range(2)],
    )
    assert [(row.kind, row.key[0]) for row in activity.rows] == [
        ("push", "event"), ("refresh", "event"), ("refresh", "refresh"), ("push", "push"),
    ]  # fmt: skip


def test_what_moved_is_named_as_far_as_there_is_room() -> None:
    """Three refs, and how many more."""
    moved = [{"ref": f"refs/heads/b{n}", "old": None, "new": f"{n}" * 40} for n in range(5)]
    assert moved_words(moved[:1]) == "b0 0000000000"
    assert moved_words(moved).endswith("b2 2222222222 and 2 more")
    assert moved_words([{"ref": "refs/tags/v1", "old": "1" * 40, "new": None}]) == "v1 deleted"


DIFF = '''diff --git a/x.py b/x.py
index 1..2 100644
--- a/x.py
+++ b/x.py
@@ -3,3 +3,3 @@ def f():
     """Text
-    old = 1
+    new = "2"
     that ends."""
\\ No newline at end of file
'''


def test_a_diff_has_numbers_marks_and_colours() -> None:
    """Each side numbered and coloured by itself; a minus that begins a removed line is no header."""
    lines = diff_lines(DIFF, "x.py")
    assert [(line.mark, line.old, line.new) for line in lines] == [
        ("@", None, None), (" ", 3, 3), ("-", 4, None), ("+", None, 4), (" ", 5, 5), ("!", None, None),
    ]  # fmt: skip
    lines = diff_lines("--- a\n+++ b\n@@ -1,2 +1 @@\n--- x\n-y\n+import z\n", "x.py")
    assert [(line.mark, "".join(text for text, _ in line.pieces)) for line in lines[1:]] == [
        ("-", "-- x"), ("-", "y"), ("+", "import z"),
    ]  # fmt: skip
    assert ("import", "code-keyword") in lines[-1].pieces


def test_damage_is_explained_before_the_last_error() -> None:
    """The mirror's damage and what to do about it; an error of the last refresh gives way."""
    repo = Repo(1, "acme/infra", "https://github.com/acme/infra", None, "cli", None, True, 0.0)
    health = Health(cloned=True, failures=4, last_error="no route to host", damage="refs/agents/s is lost")
    view = RepoView(repo, health, State.DAMAGED, "main", 60.0, "refused", "check its disk")
    texts = ["".join(text for text, _ in left).strip() for left, _ in explain(view, 90.0, 100.0, 120)]
    assert texts[0].startswith("■ acme/infra is damaged: its mirror is healed automatically")
    assert texts[1:] == ["refs/agents/s is lost", "check its disk", repo.url]


def test_what_to_do_is_never_cut() -> None:
    """At 80 columns the error gives way to the hint, and the URL to both; with room, all of it is there."""
    repo = Repo(1, "acme/infra", "https://github.com/acme/infra", None, "cli", None, True, 0.0)
    health = Health(tip="1" * 40, cloned=True, failures=4, last_error="git ls-remote failed: " + "very long words " * 9)
    hint = "check its certificate (host name, expiry, issuer) and this node's clock; a private one goes into its store"
    view = RepoView(repo, health, State.FAILING, "main", 60.0, "tls", hint)
    small, wide = explain(view, 90.0, 100.0, 80), explain(view, 90.0, 100.0, 200)
    assert [len(small), len(wide)] == [4, 4]
    texts = ["".join(text for text, _ in left) for left, _ in small]
    assert texts[1].startswith("   tls: git ls-remote failed") and texts[1].endswith("…")
    assert " ".join(texts[2:]).split() == hint.split()
    assert "".join(text for text, _ in wide[3][0]).strip() == repo.url
