"""`scripts/run.sh`: from a checkout to a clone, in whatever state the checkout is."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pyz.conftest import lend_build_directory
from tests.support.gitutil import git, wait_until
from tests.support.serve import write_config

ANY_PORTS = {f"GITMIRROR_RUN_{name}": "127.0.0.1:0" for name in ("GIT", "HTTP", "ADMIN")}


@dataclass
class Running:
    """A `scripts/run.sh` that runs, with its output in a file."""

    process: subprocess.Popen[bytes]
    output: Path

    def clone_line(self) -> list[str]:
        """The command that it prints when the first clone is there."""
        return self.line(r"git clone \S+").split()

    def line(self, pattern: str) -> str:
        """An indented line that it prints when the first clone is there."""

        def printed() -> str | None:
            found = re.search(rf"^ +({pattern})\n", self.output.read_text(), re.MULTILINE)
            assert found or self.process.poll() is None, self.output.read_text()
            return found[1] if found else None

        return wait_until(printed, timeout=60, message=f"a line as {pattern}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends a signal to it alone and returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


Run = Callable[..., Running]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Starts the script of a checkout from another directory."""
    started: list[Running] = []

    def begin(checkout: Path, *urls: str) -> Running:
        output = tmp_path / f"output-{len(started)}"
        process = subprocess.Popen(
            [checkout / "scripts" / "run.sh", *urls],
            cwd=tmp_path,
            env={**os.environ, **ANY_PORTS},
            stdin=subprocess.DEVNULL,
            stdout=output.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        started.append(Running(process, output))
        return started[-1]

    yield begin
    for one in started:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()


@pytest.fixture
def clone_of(checkout: Path, shared_directory: Path, tmp_path: Path) -> Callable[..., Path]:
    """Clones the checkout with some options, as far built as it is.

    Unless it is `fresh`, it has a state directory with the file unpacked and a configuration without workspaces: both
    take most of the time of a run, and have nothing to do with what is cloned.
    """

    def clone(*options: str, fresh: bool = False) -> Path:
        path = tmp_path / "a clone"
        git("clone", "--quiet", *options, checkout.as_uri(), str(path))
        lend_build_directory(path)
        (path / "dist").mkdir()
        os.link(checkout / "dist" / "gitmirror.pyz", path / "dist" / "gitmirror.pyz")
        if not fresh:
            (path / ".gitmirror").mkdir()
            (shared_directory / "shiv-of-run").mkdir(exist_ok=True)
            (path / ".gitmirror" / "shiv").symlink_to(shared_directory / "shiv-of-run")
            write_config(path / ".gitmirror" / "run.toml", refresh={"allow_local": True}, workspace={"enabled": False})
        return path

    return clone


def tree(repository: Path) -> str:
    """The id of all files of HEAD."""
    return git("-C", str(repository), "rev-parse", "HEAD^{tree}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "shallow", "detached"])
def test_the_printed_line_gives_a_working_clone(
    run: Run, clone_of: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    """Of this very checkout; Ctrl-C then ends everything in good order."""
    here = clone_of(*(["--depth=1"] if kind == "shallow" else []), fresh=kind == "whole")
    if kind == "detached":
        git("-C", str(here), "checkout", "--quiet", "--detach")
        git("-C", str(here), "branch", "--delete", "--force", "main")
    running = run(here)
    git(*running.clone_line()[1:], str(tmp_path / "guest"))
    line = running.line(r"\S.* status")
    assert running.line(r"\S.* tui") == line.removesuffix("status") + "tui"
    shown = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd="/", check=False)
    assert shown.returncode == 0 and "local/gitmirror" in shown.stdout, shown.stderr
    assert tree(tmp_path / "guest") == tree(here)
    assert git("-C", str(tmp_path / "guest"), "status", "--porcelain") == ""
    assert git("-C", str(here), "status", "--porcelain") == ""
    assert running.stop(signal.SIGINT) == 0


@pytest.mark.slow
def test_the_next_run_shows_what_was_committed_since(run: Run, clone_of: Callable[..., Path], tmp_path: Path) -> None:
    """With the same state, on another branch in the way of the old one, after the first was killed."""
    here = clone_of()
    first = run(here)
    first.clone_line()
    assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    git("-C", str(here), "branch", "--move", "aside")
    git("-C", str(here), "branch", "--move", "main/topic")
    git("-C", str(here), "commit", "--quiet", "--allow-empty", "--message=since")
    second = run(here)
    git(*second.clone_line()[1:], str(tmp_path / "guest"))
    head = git("-C", str(tmp_path / "guest"), "log", "-1", "--format=%s %D")
    assert head.startswith("since HEAD -> main/topic")
    assert second.stop() == 0


@pytest.mark.slow
def test_a_url_is_registered_by_its_own_name(
    run: Run, clone_of: Callable[..., Path], widgets_bare: Path, tmp_path: Path
) -> None:
    """A path will do for one, also a relative one."""
    running = run(clone_of(), widgets_bare.name)
    line = running.clone_line()
    assert line[2].endswith("/widgets")
    git(*line[1:], str(tmp_path / "guest"))
    assert tree(tmp_path / "guest") == tree(widgets_bare)
    assert running.stop() == 0


@pytest.mark.slow
def test_a_url_that_cannot_be_is_refused_before_anything_starts(run: Run, clone_of: Callable[..., Path]) -> None:
    """With the exit code and the message of `add-repo`."""
    running = run(clone_of(), "ext::sh -c true")
    assert running.process.wait(timeout=60) == 2
    assert "remote helpers such as ext:: are not allowed" in running.output.read_text()
