"""A demo as a user runs it, in a directory for temporary files of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from click.testing import CliRunner

from appliance.cli.main import cli
from tests.support.gitutil import clean_env, run_process, wait_until
from tests.support.processes import processes_of
from tests.support.serve import ROOT

SOURCE = (sys.executable, "-m", "appliance")


class DemoProcess:
    """`demo` with its temporary files below `base`, run by `program`. A context manager; `terminal` is a pty's end."""

    def __init__(
        self, base: Path, *options: str, program: tuple[str, ...] = SOURCE, terminal: int | None = None, **env: str
    ) -> None:
        self.base = base
        self.env = {**clean_env(base / "home"), "PYTHONPATH": str(ROOT), "TMPDIR": str(base), "TERM": "xterm", **env}
        self.output = base / "output"
        with self.output.open("wb") as output:
            to: IO[bytes] | int = output if terminal is None else terminal
            self.process = subprocess.Popen(
                [*program, "demo", *options],
                cwd=base,
                env=self.env,
                stdin=subprocess.DEVNULL if terminal is None else terminal,
                stdout=to,
                stderr=to,
                start_new_session=True,
            )

    def __enter__(self) -> DemoProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

        def killed() -> bool:
            left = processes_of(self.base)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left

        wait_until(killed, message="all processes of the demo end")

    def lines(self, last: str) -> list[str]:
        """The commands that `--serve-only` prints, once `last` is one of them."""

        def printed() -> list[str]:
            text = self.output.read_text()
            assert self.process.poll() is None, text
            return re.findall(r"^  ([^#\s].*)\n", text, re.MULTILINE) if last in text else []

        return wait_until(printed, timeout=120, message="the demo prints its lines")

    @property
    def places(self) -> list[Path]:
        """The directories of demos."""
        return sorted(self.base.glob("gitmirror-demo-*"))

    def ask(self, *words: str) -> Any:
        """Runs a command on the demo's node with `--json`, in this process."""
        [place] = self.places
        argv = ["--state", str(place / "state"), "--config", str(place / "gitmirror.toml"), *words, "--json"]
        done = CliRunner().invoke(cli, argv)
        assert done.exit_code in (0, 3), done.output
        return json.loads(done.stdout)

    def type(self, line: str) -> int:
        """Runs a line in a shell as a user would, and returns its exit code."""
        return run_process(["sh", "-c", line], cwd=self.base, env=self.env).returncode

    def wait(self, code: int = 0) -> None:
        """Waits until the demo has ended with `code`, and proves that nothing of it is left."""
        ended = wait_until(lambda: self.process.poll() is not None, timeout=60, message="the demo ends")
        assert ended and self.process.returncode == code, (self.process.returncode, self.output.read_text())
        wait_until(lambda: not processes_of(self.base), message="every process has ended")
        assert self.places == []
