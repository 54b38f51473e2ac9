"""A network namespace that is joined to the machine's own by a cable, and can be cut off without anybody being told."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from types import TracebackType
from typing import Any

_numbers = itertools.count()
_NOBODY = "02:00:00:00:00:01"
"""The address of no network card: the other end drops what is sent to it, as a switch that lost its way would."""


class Cable:
    """A namespace with one address of its own, `inside`, and one of this machine's, `outside`. A context manager.

    Needs root. `cut` drops every packet in both directions: no connection is refused or reset, and no card goes down.
    """

    def __init__(self) -> None:
        number = os.getpid() % 250 + 1
        part = (next(_numbers) % 60) * 4
        self.name = f"gm{os.getpid()}-{part}"
        self.outside, self.inside = f"10.203.{number}.{part + 1}", f"10.203.{number}.{part + 2}"
        self.enter = ("ip", "netns", "exec", self.name)
        self._near, self._far = f"gmo{os.getpid()}.{part}", f"gmi{os.getpid()}.{part}"

    def __enter__(self) -> Cable:
        _ip("netns", "add", self.name)
        try:
            _ip("link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self.name)
            _ip("addr", "add", f"{self.outside}/30", "dev", self._near)
            _ip("link", "set", self._near, "up")
            for order in (
                ("addr", "add", f"{self.inside}/30", "dev", self._far),
                ("link", "set", self._far, "up"),
                ("link", "set", "lo", "up"),
            ):
                _ip("-n", self.name, *order)
            self._point(self._card(self._near), self._card(self._far, inside=True))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def cut(self) -> None:
        """Drops everything from now on."""
        self._point(_NOBODY, _NOBODY)

    def mend(self) -> None:
        """Ends `cut`."""
        self._point(self._card(self._near), self._card(self._far, inside=True))

    def close(self) -> None:
        """Removes the namespace, and the cable with it."""
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True, check=False)

    def _point(self, near: str, far: str) -> None:
        """Says which network card each end takes the other for."""
        _ip("neigh", "replace", self.inside, "lladdr", far, "dev", self._near, "nud", "permanent")
        _ip("-n", self.name, "neigh", "replace", self.outside, "lladdr", near, "dev", self._far, "nud", "permanent")

    def _card(self, device: str, *, inside: bool = False) -> str:
        where = ("-n", self.name) if inside else ()
        found: list[dict[str, Any]] = json.loads(_ip(*where, "-j", "link", "show", device))
        return str(found[0]["address"])


def why_no_cable() -> str:
    """Why there can be no cable on this machine; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "ip is missing"
    try:
        with Cable():
            return ""
    except (subprocess.CalledProcessError, OSError) as error:
        return f"a network namespace cannot be made: {getattr(error, 'stderr', error)}"


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True, timeout=30).stdout
