"""Hands credentials to git for one refresh: no secret is in an argument, an environment, a file or the database.

A token goes through a memory file that only the git processes of this refresh inherit. The helper that git is told of,
for the URL of the entry alone, reads it there: git asks it only when a server below that URL demands a password, also
after a redirect (tried with git 2.39: another host, another port or another path gets nothing). An ssh key stays in its
file: ssh is told of that key, of that one file of known hosts, and of nothing else on the machine.
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
"""Seconds that what a `command` printed is used again: a hundred repositories of one entry ask it once a minute."""
LONGEST_TOKEN = 16384
MOST_WORDS = 16384
"""Bytes at the end of what a `command` complains about that are looked at."""

SYSTEMD_CREDENTIALS = Path("/run/credentials")
"""systemd shows LoadCredential files to the service alone, and lets it in by an ACL that looks like a group's bits."""

_HELPER = '!f() { test "$1" != get || cat </proc/self/fd/%d; }; f'


class CredentialError(GitError):
    """A credential cannot be had, or the upstream refused it."""


@dataclass
class _Printed:
    """What a `command` printed last and when (monotonic), how it failed last and when, and who asks it now."""

    token: str = ""
    at: float = float("-inf")
    failure: str = ""
    failed_at: float = float("-inf")
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Keyring:
    """The `[[credentials]]` in use; a reload makes another one. `environ` is what their commands run with."""

    def __init__(self, credentials: Credentials, environ: Mapping[str, str]) -> None:
        self._credentials = credentials
        self._environ = dict(environ)
        self._printed: dict[str, _Printed] = {}

    def entry(self, upstream: Upstream) -> CredentialConfig | None:
        """The entry that is for an upstream, or None."""
        return self._credentials.match(upstream.address)

    def has_key(self, upstream: Upstream) -> bool:
        """Whether an ssh upstream has a key."""
        return self.entry(upstream) is not None

    @contextlib.asynccontextmanager
    async def open(self, upstream: Upstream, git: Git) -> AsyncIterator[Git]:
        """The runner that may reach `upstream`: `git` itself, or one with its credential. Raises CredentialError.

        What git says inside of a refused credential is raised in words that name the entry.
        """
        entry = self.entry(upstream)
        if entry is None:
            yield git
        elif entry.ssh_key:
            with _in_words(entry):
                yield git.with_credential(_ssh_environment(entry))
        else:
            token = await self._token(entry, git)
            answer = f"username={entry.username}\npassword={token}\n"
            with _in_words(entry), _memory_file(answer) as descriptor:
                basic = base64.b64encode(f"{entry.username}:{token}".encode()).decode()
                environment = _token_environment(entry, upstream, descriptor)
                try:
                    yield git.with_credential(environment, pass_fds=[descriptor], secrets=[token, basic])
                except GitError as error:
                    if _words(entry, error.stderr):
                        # It may be the token that is not good any more: its command is asked again.
                        self._printed.pop(entry.url, None)
                    raise

    async def _token(self, entry: CredentialConfig, git: Git) -> str:
        if entry.token_file:
            token = _read_secret(Path(entry.token_file), f"the token of [[credentials]] {entry.url}")
        else:
            token = await self._printed_token(entry, git)
        if fault := _token_fault(token):
            raise CredentialError(f"the token of [[credentials]] {entry.url} {fault}: {_source(entry)}")
        return token

    async def _printed_token(self, entry: CredentialConfig, git: Git) -> str:
        printed, came_at = self._printed.setdefault(entry.url, _Printed()), time.monotonic()
        async with printed.lock:
            if printed.failed_at > came_at:
                # Half a minute for each of a hundred who wait would keep all other repositories from their refreshes.
                raise CredentialError(printed.failure)
            if time.monotonic() - printed.at > COMMAND_KEPT:
                try:
                    printed.token, printed.at = await self._ask(entry, git), time.monotonic()
                except CredentialError as error:
                    printed.failure, printed.failed_at = error.message, time.monotonic()
                    raise
        return printed.token

    async def _ask(self, entry: CredentialConfig, git: Git) -> str:
        said = bytearray()
        where = f"the command of [[credentials]] {entry.url}"

        def listen(data: bytes) -> None:
            said.extend(data)
            del said[:-MOST_WORDS]

        try:
            code, output = await run_child(
                git.children,
                entry.command,
                env=self._environ,
                cwd=Path("/"),
                deadline=COMMAND_DEADLINE,
                on_error=listen,
            )
        except OSError as error:
            raise CredentialError(f"{where} cannot be run: {error.strerror}: {entry.command[0]}") from error
        if code is None:
            raise CredentialError(f"{where} took longer than {COMMAND_DEADLINE:g}s and was ended")
        if code != 0:
            last = (said.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            raise CredentialError(f"{where} ended with code {code}: {last[:200]}")
        return output[: LONGEST_TOKEN + 2].decode("utf-8", "replace").removesuffix("\n")


def check_files(entry: CredentialConfig) -> list[str]:
    """What is wrong with the files of an entry, in words; nothing of what is in them."""
    found = []
    for name, what in ((entry.token_file, "the token"), (entry.ssh_key, "the key")):
        if name:
            try:
                secret = _read_secret(Path(name), what)
            except CredentialError as error:
                found.append(error.message)
                continue
            if what == "the token" and (fault := _token_fault(secret)):
                found.append(f"the token {fault}: {name}")
    if entry.known_hosts:
        try:
            with open_secret(Path(entry.known_hosts)) as file:
                is_empty = not file.read().strip()
            if is_empty:
                found.append(f"known_hosts is empty: {entry.known_hosts}")
        except OSError as error:
            found.append(f"known_hosts cannot be read: {error.strerror}: {entry.known_hosts}")
    return found


def _read_secret(path: Path, what: str) -> str:
    """The text of a file without one newline at its end. Raises CredentialError, also when others may read it."""
    try:
        with open_secret(path) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077 and SYSTEMD_CREDENTIALS not in path.parents:
                raise CredentialError(f"{what} is open to other users (mode {mode:04o}) and not used: chmod 600 {path}")
            return file.read(LONGEST_TOKEN + 2).decode("utf-8", "replace").removesuffix("\n")
    except OSError as error:
        raise CredentialError(f"{what} cannot be read: {error.strerror}: {path}") from error


def _token_fault(token: str) -> str | None:
    if not token:
        return "is empty"
    # A line break would be another line of what git reads from its helper.
    return "is not one line of text" if len(token) > LONGEST_TOKEN or re.search(r"[\x00-\x1f\x7f]", token) else None


def _source(entry: CredentialConfig) -> str:
    return entry.token_file or f"its command, {entry.command[0]}"


def _token_environment(entry: CredentialConfig, upstream: Upstream, descriptor: int) -> dict[str, str]:
    # git too compares whole parts of the path, but takes `x.git` for another one than `x`.
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
def _in_words(entry: CredentialConfig) -> Iterator[None]:
    """Tells a refused credential apart from every other failure of git."""
    try:
        yield
    except CredentialError:
        raise
    except GitError as error:
        # A refusal that asks for patience is about how often, not about who.
        patience = error.retry_after is not None or kind_of(error.stderr) is Kind.RATE_LIMITED
        if not patience and (words := _words(entry, error.stderr)):
            raise CredentialError(words, stderr=error.stderr) from error
        raise


def _words(entry: CredentialConfig, said: str) -> str | None:
    where, last = f"[[credentials]] {entry.url}", (said.strip().splitlines() or [""])[-1]
    if _HOST_KEY.search(said):
        return (
            f"the upstream's host key is not the one in {entry.known_hosts}, which {where} names: it was changed "
            "there, or somebody is in between"
        )
    if elsewhere := _ELSEWHERE.search(said):
        return f"the upstream sent us on to {elsewhere[1]}, which demands a password that {where} is not for"
    if _REFUSED.search(said):
        source = f"the key {entry.ssh_key}" if entry.ssh_key else _source(entry)
        return (
            f"the upstream refused the credential of {where}: it is wrong, expired, or may not read this repository. "
            f"Renew {source} ({last})"
        )
    if _NOT_FOUND.search(said):
        return f"the upstream has no such repository, or the credential of {where} may not see it ({last})"
    return None
