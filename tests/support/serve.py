"""The appliance as a user runs it: a real process, a config file, a state directory, real ports."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any
from urllib.parse import urlsplit

from click.testing import CliRunner

from appliance.cli.main import cli
from appliance.core.api.client import call
from appliance.core.errors import NotServing
from appliance.core.layout import Layout
from tests.support.forked import ROOT, ForkedProcess, can_fork, run_forked
from tests.support.gitutil import clean_env, git, git_result, kill_group, read_ref, run_process, wait_until
from tests.support.processes import processes_of

__all__ = ["ROOT", "CommandFailed", "Ready", "Section", "Serve", "Value", "processes_of", "wait_until", "write_config"]

Value = str | int | float | bool | Sequence[str]
"""The type of a setting in the config file."""

Section = Mapping[str, Value] | Sequence[Mapping[str, Value]]
"""A section, or the tables of a list such as `[[credentials]]`."""

_ANY_PORTS = ["--git", "127.0.0.1:0", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
_READY = re.compile(
    r"^ready(?: (git://\S+)| git \S+)?(?: (http://\S+)| http \S+)?(?: admin (?:(http://\S+)|\S+))?\n", re.MULTILINE
)


class CommandFailed(AssertionError):
    """A command of the appliance ended with an unexpected code. The message contains its output."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        argv = " ".join(map(str, done.args))
        super().__init__(f"{argv} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        self.done = done


@dataclass(frozen=True)
class Ready:
    """The URLs of the `ready` line; None for a listener that is off."""

    git: str | None
    http: str | None
    admin: str | None


def write_config(path: Path, repos: Sequence[str | Mapping[str, Value]] = (), **sections: Section) -> None:
    """Write a config file: `refresh={"interval": "1s"}` is a section, `repos` are URLs or settings."""
    lines: list[str] = []
    for name, section in sections.items():
        tables = (
            [(f"[{name}]", section)] if isinstance(section, Mapping) else [(f"[[{name}]]", each) for each in section]
        )
        for head, settings in tables:
            lines += [head, *(f"{key} = {_toml(value)}" for key, value in settings.items())]
    for repo in repos:
        settings = {"url": repo} if isinstance(repo, str) else repo
        lines += ["[[repos]]", *(f"{key} = {_toml(value)}" for key, value in settings.items())]
    path.write_text("\n".join(lines) + "\n")


class Serve:
    """One state directory with its config, and the `serve` that runs on it. A context manager.

    The constructor starts no process; `start` does. Config, output and HOME are beside `state` (`state.toml`,
    `state.out`, `state.err`, `state.home`). Each start uses new free ports unless `keep_ports` was called.
    """

    keeps_workspaces = True
    """Whether a config without a section of its own leaves `[workspace]` as it is. Snapshots that nobody asks for are a
    third of what a start with one repository takes; `tests/conftest.py` says which tests do without them."""

    def __init__(
        self,
        state: Path,
        *,
        repos: Sequence[str | Mapping[str, Value]] = (),
        pyz: Path | None = None,
        python: str | Path = sys.executable,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] | None = None,
        **sections: Section,
    ) -> None:
        """Prepare `python -m appliance` of this checkout, or the built file `pyz`.

        `repos` and `sections` are the config (see `write_config`). `env` overrides a clean environment. `options` of
        `serve` replace the default, three listeners on free ports.
        """
        self.state = state
        self.config = state.with_name(f"{state.name}.toml")
        self.home = state.with_name(f"{state.name}.home")
        self.command = [str(python), str(pyz)] if pyz else [str(python), "-m", "appliance"]
        self.starter: list[str] = []
        """Words before `command` that `serve` is started by, such as `setpriv`; other commands are not."""
        self.cwd = state.parent if pyz else ROOT
        defaults = {"SHIV_ROOT": str(state.with_name(f"{state.name}.shiv"))} if pyz else {"PYTHONPATH": str(ROOT)}
        self.env = {**clean_env(self.home), **defaults, **(env or {})}
        self.options = _ANY_PORTS if options is None else list(options)
        self.ready: Ready | None = None
        self._process: subprocess.Popen[bytes] | ForkedProcess | None = None
        self._stdout = state.with_name(f"{state.name}.out")
        self._stderr = state.with_name(f"{state.name}.err")
        self._kept: list[tuple[str, int]] = []
        self._held: dict[tuple[str, int], socket.socket] = {}
        self.home.mkdir(parents=True, exist_ok=True)
        self.configure(repos, **sections)

    def __enter__(self) -> Serve:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Running

    def configure(self, repos: Sequence[str | Mapping[str, Value]] = (), **sections: Section) -> None:
        """Rewrite the whole config file. A running `serve` reads it at `reload`."""
        if not self.keeps_workspaces:
            sections = {"workspace": {"enabled": False}, **sections}
        write_config(self.config, repos, **sections)

    def start(self, *, timeout: float = 60.0) -> Serve:
        """Run `serve` and wait for its `ready` line. Raises AssertionError, with stderr, when there is none in time."""
        assert not self.running, "serve is already running"
        wait_until(self._hold_ports, timeout=90, message=f"the ports {self._kept} are free")
        before = self._stdout.stat().st_size if self._stdout.exists() else 0
        with self._stdout.open("ab") as stdout, self._stderr.open("ab") as stderr, open(os.devnull, "rb") as nothing:
            argv = [*self.starter, *self._argv("serve", *self.options)]
            process = self._popen(argv, nothing, stdout, stderr)
        self._process = process

        def look() -> bool:
            line = _READY.search(self._stdout.read_bytes()[before:].decode())
            self.ready = Ready(*line.groups()) if line else None
            return line is not None or process.poll() is not None

        try:
            wait_until(look, timeout=timeout, message="serve prints its ready line")
        except AssertionError as error:
            self.close()
            raise AssertionError(f"{error}\n{self.log()}") from None
        if self.ready is None:
            raise AssertionError(f"serve ended with {process.returncode} before it was ready\n{self.log()}")
        return self

    @property
    def running(self) -> bool:
        """Whether the process is running."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The pid of the running `serve`."""
        assert self._process is not None, "serve was not started"
        return self._process.pid

    def kill(self) -> None:
        """Kill only the main process, as the OOM killer does; its children live on."""
        self.signal(signal.SIGKILL)
        self.wait(60)

    def terminate(self, *, timeout: float = 60.0) -> int:
        """Send SIGTERM, wait, and return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def reload(self) -> None:
        """Send SIGHUP, so that `serve` reads the config again."""
        self.signal(signal.SIGHUP)

    def restart(self) -> Serve:
        """Terminate `serve` if it runs, and start it again."""
        if self.running:
            self.terminate()
        return self.start()

    def keep_ports(self) -> None:
        """Make the next start use the current ports, so that guests find it again."""
        assert self.ready is not None, "serve was not ready yet"
        self.options = []
        for listener in ("git", "http", "admin"):
            split = urlsplit(getattr(self.ready, listener) or "")
            self.options += [f"--{listener}", split.netloc]
            if split.hostname and split.port:
                self._kept.append((split.hostname, split.port))

    def _hold_ports(self) -> bool:
        """Bind the kept ports, so that the kernel gives them to nobody while no `serve` listens there.

        Beside a socket that does not listen `serve` can: both have SO_REUSEADDR. Returns False if one is taken.
        """
        for address in self._kept:
            if address in self._held:
                continue
            holder = socket.socket()
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                holder.bind(address)
            except OSError as error:
                holder.close()
                if error.errno == errno.EADDRINUSE:
                    return False
            else:
                self._held[address] = holder
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the main process only."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = 60.0) -> int:
        """Wait for the end of the main process and return its exit code."""
        assert self._process is not None, "serve was not started"
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"serve does not end within {timeout} s\n{self.log()}") from None
        self._hold_ports()
        return code

    def close(self) -> None:
        """Kill `serve`, its process group, and every process that uses the state directory."""
        if self._process is not None:
            kill_group(self._process)
        for holder in self._held.values():
            holder.close()
        self._held.clear()

        def killed() -> bool:
            left = self.processes()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left

        wait_until(killed, message=f"all processes on {self.state} end")

    def processes(self) -> list[int]:
        """Return the pids of all processes that use the state directory: `serve`, its children, and orphans."""
        return processes_of(self.state)

    def log(self) -> str:
        """Return everything that `serve` has written to stderr since the first start."""
        return self._stderr.read_text(errors="replace") if self._stderr.exists() else ""

    # Its addresses

    @property
    def git_url(self) -> str:
        """`git://127.0.0.1:PORT`."""
        return self._url("git")

    @property
    def http_url(self) -> str:
        """`http://127.0.0.1:PORT`, for guests."""
        return self._url("http")

    @property
    def admin_url(self) -> str:
        """`http://127.0.0.1:PORT`, for operators."""
        return self._url("admin")

    @property
    def git_address(self) -> tuple[str, int]:
        """Host and port of the git:// listener, for a raw socket."""
        split = urlsplit(self.git_url)
        assert split.hostname and split.port
        return split.hostname, split.port

    def mirror(self, name: str) -> Path:
        """Return the bare mirror of `OWNER/REPO`."""
        return self.state / "mirrors" / f"{name}.git"

    # What users do with it

    def cli(
        self, *args: str, check: bool = True, timeout: float = 60.0, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run another command on the same state and config.

        Raises CommandFailed when the exit code is not 0, unless `check` is False.
        """
        data = None if input is None else input.encode()
        argv = self._argv(*args)
        if can_fork(self.command, self.env):
            words, python, module = argv[len(self.command) :], self.command[:1], self.command[-1]
            raw = run_forked(
                words, module=module, cwd=self.cwd, env=self.env, input=data, timeout=timeout, python=python
            )
        else:
            raw = run_process(argv, cwd=self.cwd, env=self.env, input=data, timeout=timeout)
        done = subprocess.CompletedProcess(raw.args, raw.returncode, raw.stdout.decode(), raw.stderr.decode())
        if check and done.returncode:
            raise CommandFailed(done)
        return done

    def cli_json(self, *args: str, codes: Sequence[int] = (0, 3), timeout: float = 60.0) -> Any:
        """Run a command with `--json` and return the document. Exit code 3 (something is stale) is not a failure."""
        done = self.cli(*args, "--json", check=False, timeout=timeout)
        if done.returncode not in codes:
            raise CommandFailed(done)
        return json.loads(done.stdout)

    def here(self, *args: str, codes: Sequence[int] = (0,)) -> str:
        """Run a command in the test's own process, in a tenth of the time, and return its stdout.

        For commands that tests give many times over, and that are tried as processes elsewhere. Raises CommandFailed
        when the exit code is none of `codes`.
        """
        argv = ["--state", str(self.state), "--config", str(self.config), *args]
        done = CliRunner().invoke(cli, argv, prog_name="gitmirror.pyz")
        if done.exit_code not in codes:
            raise CommandFailed(subprocess.CompletedProcess(argv, done.exit_code, done.stdout, done.stderr))
        return done.stdout

    def status(self) -> dict[str, Any]:
        """The document of `status --json`: from the socket that the command asks, and from the command without `serve`.

        A twentieth of the command's time, which is for the tests that ask again and again.
        """
        try:
            return dict(call(Layout(self.state), "GET", "/v1/status", timeout=60.0))
        except NotServing:
            return dict(self.cli_json("status", codes=(0, 3, 4)))

    def clone(self, dest: Path, repo: str, *git_args: str, http: bool = False) -> Path:
        """Clone `OWNER/REPO` from the appliance to `dest` as a guest does, and return `dest`."""
        url = f"{self.http_url if http else self.git_url}/{repo}"
        git("clone", "--quiet", *git_args, url, str(dest), timeout=120)
        return dest

    def wait_for_repo(self, name: str, state: str = "fresh", *, timeout: float = 60.0) -> dict[str, Any]:
        """Wait until `status` shows the repository in `state`, and return its entry."""

        def look() -> dict[str, Any] | None:
            for entry in self.status()["repos"]:
                if entry["name"] == name and entry["state"] == state:
                    return dict(entry)
            return None

        return wait_until(look, timeout=timeout, message=f"{name} is {state}")

    def wait_for_ref(self, name: str, ref: str, oid: str | None, *, timeout: float = 60.0) -> None:
        """Wait until a ref of the mirror is at `oid` (None: does not exist). Reads the mirror itself."""

        def look() -> bool:
            if oid is not None and ref.startswith("refs/"):
                return read_ref(self.mirror(name), ref) == oid
            try:
                code, found, _ = git_result("rev-parse", "--quiet", "--verify", ref, cwd=self.mirror(name))
            except (FileNotFoundError, NotADirectoryError):
                # There is no mirror yet, or a new one takes the place of another.
                return oid is None
            return found == oid if code == 0 else oid is None

        wait_until(look, timeout=timeout, message=f"{ref} of {name} is at {oid}")

    def _popen(
        self, argv: list[str], stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes]
    ) -> subprocess.Popen[bytes] | ForkedProcess:
        if can_fork(self.command, self.env) and self.starter[:1] in ([], ["setpriv"]):
            argv = argv[len(self.starter) + len(self.command) :]
            files, module = (stdin, stdout, stderr), self.command[-1]
            python = [*self.starter, self.command[0]]
            return ForkedProcess(argv, module=module, env=self.env, cwd=self.cwd, files=files, python=python)
        return subprocess.Popen(
            argv, cwd=self.cwd, env=self.env, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
        )

    def _argv(self, *args: str) -> list[str]:
        return [*self.command, "--state", str(self.state), "--config", str(self.config), *args]

    def _url(self, listener: str) -> str:
        url = getattr(self.ready, listener, None)
        assert isinstance(url, str), f"serve has no {listener} listener"
        return url


def _toml(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        # A JSON string is a TOML basic string.
        return json.dumps(value)
    return "[" + ", ".join(_toml(each) for each in value) + "]"
