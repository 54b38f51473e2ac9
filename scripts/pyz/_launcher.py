"""The first code that runs in gitmirror.pyz: finds or unpacks the packages and starts gitmirror.

It replaces the start code of shiv, which it still uses for unpacking. The differences, and the reasons:

- shiv assumes that a directory that exists is complete. A power cut soon after the first start can leave empty files
  in it, and gitmirror would then fail at every start until somebody deletes the directory. This launcher uses a
  directory only if it has a marker, which is written after everything else has reached the disk.
- Every process holds a shared lock on the directory it runs from, so that directories of older versions can be removed
  without deleting the modules of a process that still runs.
- Without a usable home (a system user, a container), shiv fails with a traceback. This launcher has a fallback.
- A Python that is too old gets a clear message instead of a traceback.
- shiv's start code always imports zipfile, subprocess and shutil; with this launcher gitmirror starts 40 ms sooner.

Every Python 3 since 3.6 must be able to parse this file: nothing from `__future__`, newer annotations as strings.
"""

import os
import sys

# The build puts shiv's hash of all packed files here.
BUILD_ID = "@build-id@"

# Locks that this process holds until it ends.
_leases: "list[int]" = []


def main() -> None:
    """Starts gitmirror from its unpacked packages."""
    if sys.version_info < (3, 11):  # noqa: UP036 (older ones do get here: they get this message)
        version = ".".join(map(str, sys.version_info[:2]))
        sys.exit(
            f"gitmirror.pyz needs Python 3.11 or newer, and {sys.executable} is {version}\n"
            f"hint: run it with a newer Python, for example: python3.12 {sys.argv[0]}"
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
        # shiv's own start code handles SHIV_INTERPRETER and similar variables.
        import _bootstrap

        os.environ["SHIV_ROOT"] = root
        _bootstrap.bootstrap()
        return
    # This replaces the pyz as the first entry, so that packages installed on the host never take precedence.
    sys.path[0] = os.path.join(root, name, "site-packages")
    from appliance.__main__ import main as gitmirror

    gitmirror()
