"""A node whose pushes stop at chosen moments.

A directory of git's own programs in which `git` and `cat` stop makes the moments exact. The first that comes stops;
whoever comes after it passes.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from tests.serving.conftest import Node
from tests.support.gitutil import git, wait_until

MOMENTS = {
    "the pack comes in": ("unpack-objects", "before", False),
    "its objects are checked": ("rev-list", "after", False),
    "the guard looks": ("cat-file", "before", False),
    "the turn is not there yet": ("update-ref", "before", False),
    "the turn is there, the ref has not moved": ("update-ref", "after", False),
    "the ref has moved, nobody was told": ("cat", "before", True),
}
"""The command that stops, when, and whether the push is applied by then."""

_SHIM = """\
#!/bin/sh
# Runs the real program; stops at the moment that the file `moment` names.
name=cat real=/bin/cat value=
case "$0" in
*/git) real={real}
    for word in "$@"; do
        if [ "$value" ]; then value=; continue; fi
        case $word in -c | --shallow-file) value=follows ;; *) name=$word; break ;; esac
    done ;;
esac
stop() {{
    [ "$moment" = "$name $1" ] && mkdir {place}/claimed 2>/dev/null || return
    # Since this one read the moment, the trap may have been opened, and nobody would let it go.
    now=
    {{ read -r now <{place}/moment; }} 2>/dev/null
    [ "$now" = "$moment" ] || {{ rmdir {place}/claimed; return; }}
    echo $$ >{place}/stopped
    while [ -e {place}/claimed ]; do /bin/sleep 0.02; done
}}
moment=
if [ -e {place}/moment ]; then read -r moment <{place}/moment; fi
stop before
case $moment in *" after")
    "$real" "$@"
    code=$?
    stop after
    exit $code
esac
exec "$real" "$@"
"""

_MOVED = """\
#!/bin/sh
[ "$1" = committed ] || exit 0
exec {place}/programs/cat >/dev/null
"""
"""A hook of which gitmirror knows nothing: receive-pack waits for it once the ref has moved, before it reports."""


@dataclass(frozen=True)
class Trap:
    """Stops the programs that git runs. `place` is where the test says when."""

    place: Path

    @classmethod
    def build(cls, place: Path) -> Trap:
        """Lay out git's programs with two of them replaced."""
        programs, real = place / "programs", Path(git("--exec-path"))
        programs.mkdir(parents=True)
        for program in real.iterdir():
            (programs / program.name).symlink_to(program)
        shim = _SHIM.format(place=place, real=real / "git")
        for name in ("git", "cat"):
            (programs / name).unlink(missing_ok=True)
            (programs / name).write_text(shim)
            (programs / name).chmod(0o755)
        return cls(place)

    @property
    def environment(self) -> dict[str, str]:
        """What a serve in the trap is started with."""
        return {"GIT_EXEC_PATH": str(self.place / "programs")}

    def set(self, moment: str, hooks: Path) -> None:
        """From here on the next program stops at a moment of MOMENTS. `hooks` are those of the running serve."""
        command, when, _ = MOMENTS[moment]
        hook = hooks / "reference-transaction"
        hook.write_text(_MOVED.format(place=self.place))
        hook.chmod(0o755)
        (self.place / "moment").write_text(f"{command} {when}\n")

    def wait(self) -> int:
        """Wait until one has stopped; return its pid."""
        return int(wait_until(lambda: self._stopped(), timeout=60, message="a program stops"))

    def open(self) -> None:
        """Nothing stops any more."""
        for name in ("moment", "stopped"):
            (self.place / name).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            (self.place / "claimed").rmdir()

    def _stopped(self) -> str | None:
        stopped = self.place / "stopped"
        return stopped.read_text().strip() or None if stopped.exists() else None


@dataclass(frozen=True)
class TrappedNode(Node):
    """A node whose pushes stop where the trap says."""

    trap: Trap

    def stop_at(self, moment: str) -> None:
        """The next push stops there."""
        self.trap.set(moment, self.serve.state / "run" / "hooks")


def receive_pack_of(pid: int) -> int:
    """The `git receive-pack` above a process."""
    while pid > 1:
        status = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        pid = int(status[1])
        if b"receive-pack" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return pid
    raise AssertionError("no receive-pack above it")
