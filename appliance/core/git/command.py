"""Runs git: argument lists, a scrubbed environment, a process group of its own, a deadline."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from appliance.core.errors import GitmirrorError, TooLarge
from appliance.core.git.complaints import Hear, hears_nothing
from appliance.core.git.error_lines import ErrorLines, last_errors
from appliance.core.git.http_trace import HttpTrace
from appliance.core.git.tls_trust import trust_config
from appliance.core.layout import Layout
from appliance.core.process.atomic_file import write_atomically
from appliance.core.process.children import MOST_DATA_OF_A_READER, Children, limited_reader
from appliance.core.process.error_output import error_output
from appliance.core.process.run import ChildFailed, run_child, stream_child
from appliance.core.units import format_size

log = logging.getLogger(__name__)

OLDEST_GIT = (2, 39)
"""`fetch --atomic` covers prune since 2.36, and `repack --cruft` exists since 2.37. Tested with 2.39."""
NEWEST_TRIED = (2, 55)
"""The newest git that the tests ran with ("Tested versions" in docs/deploying.md). `doctor` mentions a newer one."""

_PASSED_ON = (
    "PATH",
    "TMPDIR",
    "TZ",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
    "GIT_EXEC_PATH",
)
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class GitError(GitmirrorError):
    """A git command failed. `stderr` is its error output without progress; `timed_out` marks a missed deadline.

    `retry_after` is the upstream's Retry-After in seconds, or None if it sent none.
    """

    def __init__(
        self, message: str, *, stderr: str = "", timed_out: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.stderr = stderr
        self.timed_out = timed_out
        self.retry_after = retry_after


@dataclass(frozen=True)
class GitOutput:
    """What a git command printed."""

    stdout: bytes
    stderr: str


def git_environment(layout: Layout, config: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The full environment of a git child: no user or system config, no ambient credential, no prompt."""
    passed = {key: environ[key] for key in _PASSED_ON if key in environ}
    for key in _PROXIES:
        passed |= {name: environ[name] for name in (key, key.upper()) if name in environ}
    return passed | {
        "HOME": str(layout.home),
        "XDG_CONFIG_HOME": str(layout.home),
        "LC_ALL": "C",
        "GIT_CONFIG_GLOBAL": str(config),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "https:http:git:file",
        "GIT_ATTR_NOSYSTEM": "1",
        # What git 2 does by default. `traces` and `reflog` read the files of refs; a mirror's config names no format.
        "GIT_DEFAULT_REF_FORMAT": "files",
        "GIT_DEFAULT_HASH": "sha1",
    }


_COMMON_CONFIG = """\
[safe]
\tdirectory = *
\tbareRepository = all
[gc]
\tauto = 0
[maintenance]
\tauto = false
[core]
\tfsync = committed
\tfsyncMethod = batch
\tlogAllRefUpdates = false
[protocol]
\tversion = 2
[advice]
\tdetachedHead = false
[init]
\tdefaultBranch = main
[credential]
\thelper =
[http]
\tfollowRedirects = initial
\tlowSpeedLimit = 1
\tlowSpeedTime = 60
"""


def write_git_configs(layout: Layout, *, max_push: int) -> None:
    """Writes git's global configs for refresh and for serving, and creates the empty HOME. Raises OSError.

    The state directory must be there: a command that reads writes them too, and must not bring back one that somebody
    removes meanwhile.

    There are two files because settings meant for serving must not affect repack and fetch. git ignores
    `safe.directory` and similar settings in a repository's own config, so they are here.
    """
    for directory in (layout.run, layout.home):
        directory.mkdir(exist_ok=True)
    _write_if_changed(layout.git_config, _COMMON_CONFIG + trust_config(os.environ, nothing=layout.home))
    serving = (
        _COMMON_CONFIG
        + f"""\
[core]
\thooksPath = {_quoted(layout.hooks)}
\tlogAllRefUpdates = always
[receive]
\tfsckObjects = true
\tmaxInputSize = {max_push}
\tshallowUpdate = false
\tautogc = false
\tadvertisePushOptions = true
\tkeepAlive = 5
[uploadpack]
\tallowFilter = true
\tallowAnySHA1InWant = true
\tkeepAlive = 1
[pack]
\twindow = 0
\tcompression = 1
"""
    )
    _write_if_changed(layout.serving_config, serving)


def _write_if_changed(path: Path, text: str) -> None:
    """Writes only a file that differs, so that `serve` can start on a full disk with the files it has."""
    with contextlib.suppress(OSError):
        if path.read_bytes() == text.encode():
            return
    write_atomically(path, text, make_directory=False)


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class Git:
    """Runs git with one environment. `nice` is the niceness added to git's processes.

    git inherits the descriptors in `pass_fds`; `secrets` are removed from its error output. `hear` gets that output of
    every command, with the directory it ran in.
    """

    def __init__(
        self,
        children: Children,
        environment: Mapping[str, str],
        *,
        nice: int = 0,
        pass_fds: Sequence[int] = (),
        secrets: Sequence[str] = (),
        hear: Hear = hears_nothing,
    ) -> None:
        self.children = children
        self.environment = dict(environment)
        self._nice = nice
        self._pass_fds = tuple(pass_fds)
        self._secrets = tuple(secrets)
        self._hear = hear

    def gently(self) -> Git:
        """The same runner at low priority, for work that nobody waits for."""
        return Git(self.children, self.environment, nice=10, hear=self._hear)

    def with_credential(
        self, environment: Mapping[str, str], *, pass_fds: Sequence[int] = (), secrets: Sequence[str] = ()
    ) -> Git:
        """The same runner with an upstream's credential added to its environment."""
        merged = {**self.environment, **environment}
        return Git(self.children, merged, pass_fds=pass_fds, secrets=secrets, hear=self._hear)

    async def run(
        self,
        *arguments: str,
        cwd: Path,
        deadline: float,
        stdin: bytes = b"",
        on_progress: Callable[[str], None] | None = None,
        asks_upstream: bool = False,
        into: IO[bytes] | None = None,
        source: IO[bytes] | None = None,
    ) -> GitOutput:
        """Runs `git *arguments` in `cwd` for at most `deadline` seconds. Raises GitError.

        `on_progress` gets each line of stderr as it arrives, including those that git overwrites with CR. With
        `asks_upstream`, an error carries the upstream's Retry-After. With `into`, stdout goes to that file, and
        with `source`, stdin is that file; both may be of any size. Cancelling ends the whole process group.
        """
        with HttpTrace() if asks_upstream else contextlib.nullcontext() as trace:
            return await self._run(arguments, cwd, deadline, stdin, on_progress, trace, into, source)

    async def _run(
        self,
        arguments: tuple[str, ...],
        cwd: Path,
        deadline: float,
        stdin: bytes,
        on_progress: Callable[[str], None] | None,
        trace: HttpTrace | None,
        into: IO[bytes] | None,
        source: IO[bytes] | None,
    ) -> GitOutput:
        argv = ["git", *arguments]
        errors = ErrorLines(on_progress, self._secrets)
        try:
            code, stdout = await run_child(
                self.children,
                argv,
                env=self.environment | trace.environment if trace else self.environment,
                cwd=cwd,
                deadline=deadline,
                stdin=stdin,
                on_error=errors.feed,
                pass_fds=(*self._pass_fds, *((trace.file,) if trace else ())),
                into=into,
                source=source,
                nice=self._nice,
            )
        except OSError as error:
            raise GitError(f"git cannot be started: {error}") from error
        stderr = errors.text()
        self._hear(cwd, stderr)
        if code is None:
            raise _out_of_time(arguments, deadline, stderr)
        if code != 0:
            raise _failed(arguments, code, stderr, trace.retry_after() if trace else None)
        if trace is not None and arguments[0] == "ls-remote" and not stdout and trace.is_of_no_git_server():
            # git reads a blank page as a repository without refs (the dumb protocol), which would empty the mirror.
            raise GitError("the upstream answered with a page that no git server sends", stderr=stderr)
        return GitOutput(stdout, stderr)

    async def stream(
        self, *arguments: str, cwd: Path, deadline: float, stdin: bytes = b""
    ) -> AsyncGenerator[bytes, None]:
        """Runs `git *arguments` in `cwd` and yields its output as it is printed, in small pieces. Raises GitError.

        The error comes after the last piece if git fails, or if it was waited for longer than `deadline` seconds in
        total; the time that the reader takes does not count. It is TooLarge if git needs more memory than a reader may
        have. Closing the generator ends the whole process group.
        """
        said: list[str] = []
        pieces = partial(
            stream_child,
            self.children,
            limited_reader(["git", *arguments]),
            env=self.environment,
            cwd=cwd,
            deadline=deadline,
            stdin=stdin,
            nice=self._nice,
        )
        try:
            # Left before an error is raised, so that what git said can be part of it.
            with error_output(said.append) as errors:
                async with contextlib.aclosing(pieces(stderr=errors)) as output:
                    async for piece in output:
                        yield piece
        except TimeoutError:
            raise _out_of_time(arguments, deadline, "".join(said)) from None
        except ChildFailed as failed:
            if failed.code in _NOT_STARTED:
                raise GitError(f"git cannot be started: {''.join(said).strip()}") from None
            if _OUT_OF_MEMORY in "".join(said).lower():
                raise TooLarge(
                    f"git {_command_in(arguments)} needs more than {format_size(MOST_DATA_OF_A_READER)} of memory",
                    hint="fetch with git what is so large, and look at it there",
                ) from None
            raise _failed(arguments, failed.code, "".join(said)) from None
        except OSError as error:
            raise GitError(f"git cannot be started: {error}") from error
        finally:
            self._hear(cwd, "".join(said))


_NOT_STARTED = (126, 127)
"""Exit codes of the shell in `limited_reader`."""
_OUT_OF_MEMORY = "out of memory"
"""What git says when it may not have more."""


def _out_of_time(arguments: Sequence[str], deadline: float, stderr: str) -> GitError:
    words = f"git {_command_in(arguments)} took longer than {deadline:g}s and was ended"
    return GitError(words, stderr=stderr, timed_out=True)


def _failed(arguments: Sequence[str], code: int, stderr: str, retry_after: float | None = None) -> GitError:
    words = f"git {_command_in(arguments)} failed: {last_errors(stderr) or f'exit code {code}'}"
    return GitError(words, stderr=stderr, retry_after=retry_after)


def _command_in(arguments: Sequence[str]) -> str:
    """The subcommand, after the options of git itself: `-c name=value` and `--literal-pathspecs`."""
    rest = iter(arguments)
    return next(word for word in rest if not (word == "-c" and next(rest)) and not word.startswith("--"))
