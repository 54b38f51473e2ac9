"""Who is served and was served, and which hydrations are far slower than others like them."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from appliance.core.units import rfc3339
from appliance.tui.data.traffic import HOUR, Running, Traffic
from appliance.tui.screens.guest_lines import explain, slow_words
from appliance.tui.screens.guests import GuestsScreen
from tests.conftest import ServeFactory
from tests.serving.conftest import BIG, SETTLED
from tests.serving.conftest import big_bare as big_bare
from tests.support.upstream import HttpUpstream
from tests.tui.drive import Seen, drive, make_app
from tests.tui.scene import NOW, PULSE, TRANSFERS, Make, Scene, build_empty
from tests.tui.test_guests_view import build_many, names


def ended(number: int, **facts: Any) -> dict[str, Any]:
    """A row of the history, of a guest of its own that took 0.1 s."""
    row = {
        "id": number, "at": rfc3339(NOW - 100 + number), "repo": "acme/widgets", "want": "1" * 40, "shape": "depth 1",
        "way": "hit", "bytes": 2**20, "first_byte": 0.01, "seconds": 0.1, "client": f"10.0.0.{number}",
        "protocol": "git", "guest": None, "outcome": "complete",
    }  # fmt: skip
    return row | facts


def running(**facts: Any) -> dict[str, Any]:
    """An element of `GET /v1/transfers`."""
    return TRANSFERS[1] | {"shape": "depth 1", "seconds": 5.0, "bytes": 10 * 2**20} | facts


def test_an_outlier_is_told_from_a_kind_that_is_slow() -> None:
    """By the median of the same repository and shape, and only where some were complete; one that runs becomes one."""
    traffic = Traffic()
    usual = [ended(number) for number in range(1, 8)]
    broken = [ended(number, seconds=60.0, outcome="aborted") for number in range(8, 20)]
    few = [ended(number, shape="all of it", seconds=0.1) for number in range(20, 24)]
    assert traffic.take([*usual, *broken, *few], NOW)
    traffic.look([running(), running(id=3, shape="all of it"), running(id=4, seconds=0.9)])
    slow, unknown, quick = (traffic.slowness(each) for each in traffic.running)
    assert slow is not None and slow_words(slow) == "50 times slower than the median of 7 like it (100 ms)"
    assert unknown is None and quick is None
    traffic.look([running(id=4, seconds=1.4)])
    slow = traffic.slowness(traffic.running[0])
    assert slow is not None and slow_words(slow).startswith("14 times slower")


def test_who_is_in_the_list() -> None:
    """Known ones, those that are served, those of the last hour, and those with a disk; what is older goes."""
    traffic = Traffic()
    traffic.take([ended(1), ended(2, guest="vm-2"), ended(3, client="vsock:3", protocol="http")], NOW)
    traffic.look([running(guest="vm-4"), running(id=3, guest="vm-4")])
    lines = {line.name: line for line in traffic.lines([], {"vm-5": 2})}
    assert set(lines) == {"10.0.0.1", "vm-2", "vsock:3", "vm-4", "vm-5"}
    assert len(lines["vm-4"].running) == 2 and lines["vm-5"].disks == 2 and lines["vm-2"].hour == 1
    assert lines["vsock:3"].last is not None and lines["vsock:3"].last.road == "HTTP over vsock"
    assert not traffic.take([ended(1), ended(3)], NOW), "rows that are known"
    assert traffic.take([], NOW + HOUR)
    assert {line.name for line in traffic.lines([], {})} == {"vm-4"}


def test_the_speed_is_that_of_now() -> None:
    """Between two looks; at the first one, since the start. Two looks at once keep it."""
    first = Running.of(running(seconds=2.0, bytes=4000), None)
    second = Running.of(running(seconds=3.0, bytes=4500), first)
    assert (first.speed, second.speed) == (2000.0, 500.0)
    assert Running.of(running(seconds=3.01, bytes=9000), second).speed == 500.0


def test_one_that_broke_off_says_so() -> None:
    """In the list of what it did, with what it got; the reader sees no hit."""
    traffic = Traffic()
    traffic.take([ended(1, outcome="aborted", bytes=3 * 2**20, seconds=7.0)], NOW)
    [line] = traffic.lines([], {})
    told = ["".join(text for text, _ in left + right) for left, right in explain(line, None, traffic, [], NOW, 120)]
    assert "broke off acme/widgets" in told[0]
    assert "broken off: a pack of acme/widgets (depth 1) by git://after 3.0 MiB and 7.00 s" in told[-1]
    assert not any("cache" in each for each in told)


@pytest.mark.slow
def test_a_download_is_watched_until_it_is_broken_off(
    serve_factory: ServeFactory, upstream: HttpUpstream, big_bare: Path
) -> None:
    """Of a guest that nobody knows: its bytes, its gauge, and that it is gone as soon as it hangs up."""
    upstream.add(BIG, big_bare)
    serve = serve_factory(repos=[upstream.url(BIG)], refresh=SETTLED).start()
    serve.wait_for_repo(BIG)
    http = urlsplit(serve.http_url)
    guest = socket.socket()
    guest.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)

    async def script(seen: Seen) -> None:
        await seen.shows("● serving")
        await seen.press("5")
        await seen.shows("No guest is known yet")
        guest.connect((http.hostname, http.port))
        guest.sendall(f"GET /{BIG}/workspace.tar HTTP/1.1\r\nHost: mirror\r\n\r\n".encode())
        await asyncio.to_thread(guest.recv, 2**20, socket.MSG_WAITALL)
        await seen.shows("1 guest", "◌ receives acme/big", "now  ", "a tar of acme/big by HTTP", "% of ", "━")
        guest.close()
        await seen.shows("broke off acme/big", "broken off: a tar of acme/big by HTTP", "after ")
        await seen.hides("◌ receives")
        await seen.press("3")
        await seen.shows("✗ broken off")

    drive(make_app(serve), script, (140, 30))


@pytest.mark.slow
def test_a_thousand_cost_nothing_while_nothing_changes(make_once: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand known guests with a full hour of history: what is read anew is compared, and no list is made of it."""
    pulse = PULSE | {"known_guests": {"count": 1000, "problems": {}}}
    app = Scene(make_once("many-guests", build_many), pulse).app(monkeypatch)

    async def script(seen: Seen) -> None:
        await seen.press("5")
        await seen.until(lambda: len(names(seen)) == 1000, "all are read")
        await seen.settled()
        made: list[int] = []
        monkeypatch.setattr(GuestsScreen, "_collect", lambda self: made.append(1))
        reads, look = app.context.follower.beats, app.context.follower
        await seen.until(lambda: look.beats >= reads + 3 and not app.context.loader.busy, "it is read again")
        assert not made

    drive(app, script)


def test_nobody_at_all(make_once: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is served is shown, known or not."""
    scene = Scene(make_once("empty-scene", build_empty), sent=[running()])

    async def script(seen: Seen) -> None:
        await seen.press("5")
        await seen.shows("1 guest, 0 known", "◌ 1 served", "10.0.3.77", "10.0 MiB", "not known")

    drive(scene.app(monkeypatch), script, (80, 24))
