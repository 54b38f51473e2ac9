"""What runs first inside gitmirror.pyz: finds the unpacked packages, or unpacks them, and starts gitmirror.

It stands in for the start that shiv writes, which it uses for the unpacking. What it adds, and why:

- shiv takes a directory that exists for a whole one. A power cut soon after the first start can leave files in
  it empty, and the appliance would then fail at every start until somebody deletes it. Here a directory counts
  only with a marker that is written after everything else has reached the disk.
- Every process holds a shared lock on the directory it runs from, so that the directories of older versions
  can be removed without taking the modules away from a process that still runs.
- Without a usable home (a system user, a container) shiv ends in a traceback. Here there is a second place.
- An interpreter that is too old gets a sentence and not a traceback from somewhere inside.
- shiv's start imports zipfile, subprocess and shutil each time; with this one gitmirror starts 40 ms sooner.

Written so that every Python 3 since 3.6 can parse it: nothing from `__future__`, newer annotations as strings.
"""

import os
import sys

# The build puts shiv's hash of all packed files here.
BUILD_ID = "@build-id@"

# Locks that this process holds as long as it lives.
_leases: "list[int]" = []


def main() -> None:
    """Starts gitmirror from its unpacked packages."""
    if sys.version_info < (3, 11):  # noqa: UP036 (older ones do get here: they get this message)
        version = ".".join(map(str, sys.version_info[:2]))
        sys.exit(
            f"gitmirror.pyz needs Python 3.11 or newer, and {sys.executable} is {version}\n"
            f"hint: run it by a newer one, as in: python3.12 {sys.argv[0]}"
        )
    from _places import is_safe, lease, roots

    pyz = os.path.realpath(os.path.dirname(__file__))
    name = f"{os.path.basename(pyz)}_{BUILD_ID}"
    for root in roots():
        held = lease(os.path.join(root, name)) if is_safe(root) else None
        if held is not None:
            break
    else:
        import _unpack

        root, held = _unpack.unpack_somewhere(pyz, roots(), name)
    _leases.append(held)
    if any(switch.startswith("SHIV_") and switch != "SHIV_ROOT" for switch in os.environ):
        # SHIV_INTERPRETER and its kin: shiv itself knows what they mean.
        import _bootstrap

        os.environ["SHIV_ROOT"] = root
        _bootstrap.bootstrap()
        return
    # In the place of the pyz, and so before everything else: what the host has installed is never preferred.
    sys.path[0] = os.path.join(root, name, "site-packages")
    from appliance.__main__ import main as gitmirror

    gitmirror()
