"""Hands credentials to git for one refresh: no secret is in an argument, an environment, a file or the database.

A token goes through a memory file that only the git processes of this refresh inherit. git gets a credential helper for
the URL of the entry alone, and the helper reads the token from that file. git asks the helper only when a server below
that URL demands a password, and the same after a redirect (tried with git 2.39: another host, another port or another
path gets nothing). An ssh key stays in its file: ssh may use that key and that one known-hosts file, and nothing else
on the machine.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import shlex
import stat
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from appliance.core.config.credentials import CredentialConfig, Credentials
from appliance.core.config.secret_files import open_secret
from appliance.core.git.command import Git, GitError
from appliance.core.git.failures import Kind, kind_of
from appliance.core.process.run import run_child
from appliance.core.upstream import Upstream

COMMAND_DEADLINE = 30.0
"""Seconds that a `command` may take."""
COMMAND_KEPT = 60.0
"""Seconds that a `command`'s output is reused, so that a hundred repositories of one entry run it once a minute."""
LONGEST_TOKEN = 16384
MOST_WORDS = 16384
"""How many bytes from the end of a `command`'s stderr are read."""

SYSTEMD_CREDENTIALS = Path("/run/credentials")
"""systemd shows LoadCredential files to the service alone, and grants access by an ACL that looks like group bits."""

_HELPER = '!f() { test "$1" != get || cat </proc/self/fd/%d; }; f'


class CredentialError(GitError):
    """A credential cannot be read, or the upstream refused it."""


@dataclass
class _Printed:
    """A `command`'s last output and last failure, each with its monotonic time. `lock` lets one caller run it."""

    token: str = ""
    at: float = float("-inf")
    failure: str = ""
    failed_at: float = float("-inf")
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Keyring:
    """The `[[credentials]]` in use; a reload makes a new Keyring. `environ` is the environment of their commands."""

    def __init__(self, credentials: Credentials, environ: Mapping[str, str]) -> None:
        self._credentials = credentials
        self._environ = dict(environ)
        self._printed: dict[str, _Printed] = {}

    def entry(self, upstream: Upstream) -> CredentialConfig | None:
        """The entry for an upstream, or None."""
        return self._credentials.match(upstream.address)

    def has_key(self, upstream: Upstream) -> bool:
        """Whether an ssh upstream has a key."""
        return self.entry(upstream) is not None

    @contextlib.asynccontextmanager
    async def open(self, upstream: Upstream, git: Git) -> AsyncIterator[Git]:
        """A runner that can reach `upstream`: `git` itself, or one with its credential. Raises CredentialError.

        If git fails inside the block because the credential was refused, the error names the entry.
        """
        entry = self.entry(upstream)
        if entry is None:
            yield git
        elif entry.ssh_key:
            with _named_refusals(entry):
                yield git.with_credential(_ssh_environment(entry))
        else:
            token = await self._token(entry, git)
            helper_output = f"username={entry.username}\npassword={token}\n"
            with _named_refusals(entry), _memory_file(helper_output) as descriptor:
                basic = base64.b64encode(f"{entry.username}:{token}".encode()).decode()
                environment = _token_environment(entry, upstream, descriptor)
                try:
                    yield git.with_credential(environment, pass_fds=[descriptor], secrets=[token, basic])
                except GitError as error:
                    if _refusal(entry, error.stderr):
                        # The token may have expired, so run its command again next time.
                        self._printed.pop(entry.url, None)
                    raise

    async def authorization(self, upstream: Upstream, git: Git) -> str | None:
        """The `Authorization` header for the web server of an https or http upstream; None without an entry for it.

        It is a secret: it belongs into no argument, log or message. Raises CredentialError.
        """
        entry = self.entry(upstream)
        if entry is None or entry.ssh_key:
            return None
        token = await self._token(entry, git)
        return f"Basic {base64.b64encode(f'{entry.username}:{token}'.encode()).decode()}"

    def refused(self, upstream: Upstream) -> str:
        """Says that the web server of an upstream refused `authorization`, whose command is run again next time."""
        entry = self.entry(upstream)
        if entry is None:
            return "the upstream demands a credential, and no [[credentials]] entry applies to it"
        self._printed.pop(entry.url, None)
        return f"the upstream refused the credential of [[credentials]] {entry.url}: renew {_source(entry)}"

    async def _token(self, entry: CredentialConfig, git: Git) -> str:
        if entry.token_file:
            token = _read_secret(Path(entry.token_file), f"the token of [[credentials]] {entry.url}")
        else:
            token = await self._printed_token(entry, git)
        if fault := _token_fault(token):
            raise CredentialError(f"the token of [[credentials]] {entry.url} {fault}: {_source(entry)}")
        return token

    async def _printed_token(self, entry: CredentialConfig, git: Git) -> str:
        printed, requested_at = self._printed.setdefault(entry.url, _Printed()), time.monotonic()
        async with printed.lock:
            if printed.failed_at > requested_at:
                # Share the failure: half a minute for each of a hundred waiting refreshes would stall all the others.
                raise CredentialError(printed.failure)
            if time.monotonic() - printed.at > COMMAND_KEPT:
                try:
                    printed.token, printed.at = await self._run_command(entry, git), time.monotonic()
                except CredentialError as error:
                    printed.failure, printed.failed_at = error.message, time.monotonic()
                    raise
        return printed.token

    async def _run_command(self, entry: CredentialConfig, git: Git) -> str:
        stderr = bytearray()
        where = f"the command of [[credentials]] {entry.url}"

        def collect(data: bytes) -> None:
            stderr.extend(data)
            del stderr[:-MOST_WORDS]

        try:
            code, output = await run_child(
                git.children,
                entry.command,
                env=self._environ,
                cwd=Path("/"),
                deadline=COMMAND_DEADLINE,
                on_error=collect,
            )
        except OSError as error:
            raise CredentialError(f"{where} cannot be run: {error.strerror}: {entry.command[0]}") from error
        if code is None:
            raise CredentialError(f"{where} took longer than {COMMAND_DEADLINE:g}s and was ended")
        if code != 0:
            last = (stderr.decode(errors="replace").strip().splitlines() or ["it printed no error"])[-1]
            raise CredentialError(f"{where} ended with code {code}: {last[:200]}")
        return output[: LONGEST_TOKEN + 2].decode("utf-8", "replace").removesuffix("\n")


def check_files(entry: CredentialConfig) -> list[str]:
    """One sentence for each problem with the files of an entry; never any of their content."""
    problems = []
    for name, what in ((entry.token_file, "the token"), (entry.ssh_key, "the key")):
        if name:
            try:
                secret = _read_secret(Path(name), what)
            except CredentialError as error:
                problems.append(error.message)
                continue
            if what == "the token" and (fault := _token_fault(secret)):
                problems.append(f"the token {fault}: {name}")
    if entry.known_hosts:
        try:
            with open_secret(Path(entry.known_hosts)) as file:
                is_empty = not file.read().strip()
            if is_empty:
                problems.append(f"known_hosts is empty: {entry.known_hosts}")
        except OSError as error:
            problems.append(f"known_hosts cannot be read: {error.strerror}: {entry.known_hosts}")
    return problems


def _read_secret(path: Path, what: str) -> str:
    """The text of a file without its final newline. Raises CredentialError, among others if other users can read it."""
    try:
        with open_secret(path) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077 and SYSTEMD_CREDENTIALS not in path.parents:
                raise CredentialError(
                    f"{what} is open to other users (mode {mode:04o}), so it is not used: chmod 600 {path}"
                )
            return file.read(LONGEST_TOKEN + 2).decode("utf-8", "replace").removesuffix("\n")
    except OSError as error:
        raise CredentialError(f"{what} cannot be read: {error.strerror}: {path}") from error


def _token_fault(token: str) -> str | None:
    if not token:
        return "is empty"
    # A line break would add a line to what git reads from its helper.
    return "is not one line of text" if len(token) > LONGEST_TOKEN or re.search(r"[\x00-\x1f\x7f]", token) else None


def _source(entry: CredentialConfig) -> str:
    return entry.token_file or f"its command, {entry.command[0]}"


def _token_environment(entry: CredentialConfig, upstream: Upstream, descriptor: int) -> dict[str, str]:
    # git also compares whole path components, but treats `x.git` and `x` as different.
    urls = [entry.url, upstream.url] if upstream.url.endswith(".git") else [entry.url]
    settings = [("credential.useHttpPath", "true")]
    settings += [(f"credential.{url}.helper", _HELPER % descriptor) for url in dict.fromkeys(urls)]
    environment = {"GIT_CONFIG_COUNT": str(len(settings)), "GIT_ALLOW_PROTOCOL": upstream.scheme}
    for number, (key, value) in enumerate(settings):
        environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return environment


def _ssh_environment(entry: CredentialConfig) -> dict[str, str]:
    for problem in check_files(entry):
        raise CredentialError(f"[[credentials]] {entry.url}: {problem}")
    options = {
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "BatchMode": "yes",
        "PreferredAuthentications": "publickey",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": f'"{entry.known_hosts}"',
        "GlobalKnownHostsFile": "/dev/null",
        "UpdateHostKeys": "no",
        "ClearAllForwardings": "yes",
        "ControlPath": "none",
        "ConnectTimeout": "30",
        "ServerAliveInterval": "30",
    }
    words = ["ssh", "-F", "/dev/null", "-i", entry.ssh_key]
    words += [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    return {"GIT_SSH_COMMAND": shlex.join(words), "GIT_SSH_VARIANT": "ssh", "GIT_ALLOW_PROTOCOL": "ssh"}


@contextlib.contextmanager
def _memory_file(text: str) -> Iterator[int]:
    descriptor = os.memfd_create("credential", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
        yield descriptor
    finally:
        os.close(descriptor)


_REFUSED = re.compile(
    r"Authentication failed for|requested URL returned error: 40[13]|Permission denied \(|error in libcrypto"
)
_ELSEWHERE = re.compile(r"could not read (?:Username|Password) for '([^']*)'")
_NOT_FOUND = re.compile(r"repository '.*' not found|Repository not found|requested URL returned error: 404")
_HOST_KEY = re.compile(r"Host key verification failed|No \S+ host key is known|REMOTE HOST IDENTIFICATION HAS CHANGED")


@contextlib.contextmanager
def _named_refusals(entry: CredentialConfig) -> Iterator[None]:
    """Turns git's error into a CredentialError that names the entry if the upstream refused the credential."""
    try:
        yield
    except CredentialError:
        raise
    except GitError as error:
        # With Retry-After, or at a rate limit, the refusal is about the number of requests, not about the credential.
        too_many = error.retry_after is not None or kind_of(error.stderr) is Kind.RATE_LIMITED
        if not too_many and (refusal := _refusal(entry, error.stderr)):
            raise CredentialError(refusal, stderr=error.stderr) from error
        raise


def _refusal(entry: CredentialConfig, stderr: str) -> str | None:
    where, last = f"[[credentials]] {entry.url}", (stderr.strip().splitlines() or [""])[-1]
    if _HOST_KEY.search(stderr):
        return (
            f"the upstream's host key is not the one in {entry.known_hosts}, which {where} names: the upstream changed "
            "its key, or somebody intercepts the connection"
        )
    if elsewhere := _ELSEWHERE.search(stderr):
        return f"the upstream redirected to {elsewhere[1]}, which demands a password; {where} does not apply there"
    if _REFUSED.search(stderr):
        source = f"the key {entry.ssh_key}" if entry.ssh_key else _source(entry)
        return (
            f"the upstream refused the credential of {where}: it is wrong, expired, or may not read this repository. "
            f"Renew {source} ({last})"
        )
    if _NOT_FOUND.search(stderr):
        return f"the upstream has no such repository, or the credential of {where} may not see it ({last})"
    return None
