"""Heals one mirror in a process of its own, and kills itself at a step: `heal_once.py SCENE STEP exchange|renames`.

A step is what changes the mirror, its successor or evidence, or starts a program. Prints how many there were.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from appliance.core.integrity import exchange
from tests.integrity.conftest import Scene

STEPS = frozenset({"os.rename", "os.remove", "shutil.copyfile", "shutil.rmtree", "ctypes.dlsym"})
UNIMPORTANT = ("/healing/scratch", "/run/children/", "/dev/null")


def is_step(event: str, arguments: tuple[object, ...]) -> bool:
    """Whether an audit event is a step."""
    if event == "subprocess.Popen":
        return True
    is_writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    path = str(arguments[0]) if arguments else ""
    # A tree is removed name by name, relative to its directory.
    is_named = event == "ctypes.dlsym" or path.startswith("/")
    return bool(event in STEPS or is_writing) and is_named and not any(each in path for each in UNIMPORTANT)


def main() -> None:
    """Heal, or die on the way."""
    base, last = Path(sys.argv[1]), int(sys.argv[2])
    if sys.argv[3] == "renames":
        exchange.__dict__["_exchange"] = lambda one, other: False
    scene = Scene(base)
    found = scene.look()
    count = 0

    def on_event(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if is_step(event, arguments):
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(on_event)
    scene.heal(found)
    print(count)


if __name__ == "__main__":
    main()
