"""The garbage collector of a running `serve` does not go through what was there at the start each time."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.conftest import ServeFactory
from tests.support.gitutil import wait_until
from tests.support.serve import ROOT

INSIDE = """
import gc, os, signal

def say(*_):
    with open(os.environ["FROZEN"] + ".new", "w") as file:
        file.write(str(gc.get_freeze_count()))
    os.rename(file.name, os.environ["FROZEN"])

signal.signal(signal.SIGUSR2, say)
"""


def test_what_lives_as_long_as_serve_is_set_apart(serve_factory: ServeFactory, tmp_path: Path) -> None:
    """A full round of the collector otherwise holds the loop, and all guests, while it looks at 55,000 objects."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "sitecustomize.py").write_text(INSIDE)
    said = tmp_path / "frozen"
    path = f"{tmp_path / 'inside'}{os.pathsep}{ROOT}"
    serve = serve_factory(repos=[], env={"PYTHONPATH": path, "FROZEN": str(said)}).start()

    def frozen() -> int:
        said.unlink(missing_ok=True)
        os.kill(serve.pid, signal.SIGUSR2)
        wait_until(said.exists, message="it has said how many objects are frozen")
        return int(said.read_text())

    # It says that it is ready a moment before.
    wait_until(lambda: frozen() > 20_000, message="what was there at the start is frozen")
