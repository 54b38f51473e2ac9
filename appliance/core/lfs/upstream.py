"""What the event loop asks of upstreams' LFS servers: credentials, threads, and how many at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from appliance.core.errors import Forbidden, GitmirrorError, TryLater
from appliance.core.git.command import GitError
from appliance.core.git.keyring import CredentialError, Keyring
from appliance.core.git.mirror import QUICK
from appliance.core.git.mirrors import Mirrors
from appliance.core.health import followed_branch
from appliance.core.lfs.endpoint import Endpoint, endpoint_of
from appliance.core.lfs.pointers import Pointer
from appliance.core.models import Health, Repo

if TYPE_CHECKING:
    from appliance.core.lfs.http_client import Line
    from appliance.core.lfs.upstream_lfs import Action, Sink

log = logging.getLogger(__name__)
_T = TypeVar("_T")

MOST_FETCHES = 4
"""Objects that are fetched at once for one repository."""
MOST_ASKED = 2
"""Batch requests at once for one repository."""
MOST_THREADS = 64
"""Requests at once for all repositories. One that hangs ends after half a minute, one that drips after a minute."""
HEAD_SECONDS = 60.0
"""Seconds that a whole batch, or the head of an answer with an object, may take."""
KEPT_SECONDS = 10.0
"""How long the LFS server that a repository names is remembered."""
LONGEST_PAUSE = 60.0
_MOST_CONFIG = 64 * 2**10


@dataclass
class _Pause:
    """A server that failed is not asked before `until`; `failures` in a row make it longer."""

    until: float = 0.0
    failures: int = 0
    words: str = ""


class HasKeyring(Protocol):
    """What a reload gives another keyring: the refresher."""

    keyring: Keyring


class _Lanes:
    def __init__(self) -> None:
        self.asks = asyncio.Semaphore(MOST_ASKED)
        self.fetches = asyncio.Semaphore(MOST_FETCHES)


class LfsUpstreams:
    """The LFS servers of all repositories. `holder` has the credentials in use."""

    def __init__(self, mirrors: Mirrors, health: Callable[[int], Health], holder: HasKeyring) -> None:
        self._mirrors = mirrors
        self._health = health
        self._holder = holder
        self._endpoints: dict[int, tuple[float, str, Endpoint]] = {}
        self._lanes: dict[int, _Lanes] = {}
        self._threads = asyncio.Semaphore(MOST_THREADS)
        self._pauses: dict[str, _Pause] = {}

    async def endpoint(self, repo: Repo) -> Endpoint:
        """The LFS server of a repository: what `.lfsconfig` of the followed branch names, else the upstream's.

        Raises GitmirrorError if that names one that is not asked.
        """
        at, url, found = self._endpoints.get(repo.id, (-math.inf, "", None))
        if found is None or url != repo.url or time.monotonic() - at > KEPT_SECONDS:
            found = endpoint_of(repo.url, await self._configured(repo))
            self._endpoints[repo.id] = time.monotonic(), repo.url, found
        return found

    async def _configured(self, repo: Repo) -> str | None:
        """`lfs.url` of the followed branch's `.lfsconfig`, or None."""
        branch = followed_branch(repo, self._health(repo.id))
        if branch is None:
            return None
        mirror, blob = self._mirrors(repo.name), f"refs/heads/{branch}:.lfsconfig"
        try:
            size = await mirror.git.run("cat-file", "-s", blob, cwd=mirror.path, deadline=QUICK)
            if int(size.stdout) > _MOST_CONFIG:
                return None
            # Without --no-includes, git also reads the files of this node that `include.path` in the blob names.
            words = ("config", "--no-includes", "--blob", blob, "--get", "lfs.url")
            output = await mirror.git.run(*words, cwd=mirror.path, deadline=QUICK)
        except (GitError, ValueError):
            # There is no such file, or no such setting in it.
            return None
        return output.stdout.decode("utf-8", "replace").rstrip("\n") or None

    async def ask(self, repo: Repo, pointers: Sequence[Pointer]) -> dict[Pointer, Action | GitmirrorError]:
        """How each object is fetched, or why not. Raises GitmirrorError if that fails for all of them."""
        from appliance.core.lfs.http_client import Line
        from appliance.core.lfs.upstream_lfs import ask

        endpoint = await self.endpoint(repo)
        pause = self._pauses.setdefault(endpoint.url, _Pause())
        if (left := pause.until - time.monotonic()) > 0:
            raise TryLater(pause.words, retry_after=math.ceil(left))
        keyring, line = self._holder.keyring, Line()
        async with self._lanes_of(repo).asks, self._threads:
            try:
                authorization = await self._authorization(endpoint, keyring)
                with _cut_in(HEAD_SECONDS, line):
                    found = await _in_thread(partial(ask, endpoint, pointers, authorization, line), line)
            except Forbidden as error:
                words = error.message if endpoint.credential is None else keyring.refused(endpoint.credential)
                raise _not_for_guests(repo, words) from None
            except CredentialError as error:
                raise _not_for_guests(repo, error.message) from None
            except TryLater as error:
                self._paused(pause, error)
                raise
        pause.failures = 0
        return found

    async def _authorization(self, endpoint: Endpoint, keyring: Keyring) -> str | None:
        if endpoint.credential is None:
            return None
        return await keyring.authorization(endpoint.credential, self._mirrors.git)

    @staticmethod
    def _paused(pause: _Pause, error: TryLater) -> None:
        seconds = min(LONGEST_PAUSE, max(float(error.retry_after), 2.0**pause.failures))
        pause.failures = min(pause.failures + 1, 10)
        pause.until, pause.words = time.monotonic() + seconds, error.message

    async def fetch(self, repo: Repo, pointer: Pointer, action: Action, begin: Sink, sink: Sink) -> None:
        """Fetches an object into `sink`, in a thread. Raises GitmirrorError, and what `sink` raises.

        At most MOST_FETCHES run at once for one repository, so that an upstream that hangs keeps no other waiting.
        """
        from appliance.core.lfs.http_client import Line
        from appliance.core.lfs.upstream_lfs import fetch

        endpoint, line, loop = await self.endpoint(repo), Line(), asyncio.get_running_loop()
        async with self._lanes_of(repo).fetches, self._threads:
            with _cut_in(HEAD_SECONDS, line) as timer:

                def has_begun(data: bytes) -> None:
                    loop.call_soon_threadsafe(timer.cancel)
                    begin(data)

                await _in_thread(partial(fetch, endpoint, pointer, action, line, has_begun, sink), line)

    def _lanes_of(self, repo: Repo) -> _Lanes:
        return self._lanes.setdefault(repo.id, _Lanes())


def _not_for_guests(repo: Repo, words: str) -> Forbidden:
    """Logs why a credential was not used or refused, which names files of this node, and makes an error for guests."""
    log.warning("%s: LFS objects cannot be fetched: %s", repo.name, words)
    return Forbidden("the upstream's LFS server does not let this node in; its operator finds the reason in the log")


@contextlib.contextmanager
def _cut_in(seconds: float, line: Line) -> Iterator[asyncio.TimerHandle]:
    """A context whose timer cuts a connection: a thread that gets a byte now and then sees no deadline."""
    timer = asyncio.get_running_loop().call_later(seconds, line.cut)
    try:
        yield timer
    finally:
        timer.cancel()


async def _in_thread(work: Callable[[], _T], line: Line) -> _T:
    """Runs `work` in a thread of its own, and cuts its connection if nobody waits any more.

    The threads of the loop's pool are not for this: a server that hangs would take them from the database. An exit does
    not wait for such a thread either.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def conclude(result: _T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:
            failure = error
        try:
            loop.call_soon_threadsafe(conclude, result, failure)
        except RuntimeError:
            log.debug("an LFS request ended after the end")

    threading.Thread(target=run, name="lfs", daemon=True).start()
    try:
        return await future
    except asyncio.CancelledError:
        line.cut()
        raise
