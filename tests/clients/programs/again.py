"""For clients that are a library for Python: a process for each action, forked from one that has imported the library.

The lines of stdin are the actions, their words separated by tabs. After what an action prints comes a line with a NUL
and its exit code.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable


def again(main: Callable[..., int]) -> None:
    """Run `main` with the words of each line, until there are no more."""
    while line := sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = main(*line.rstrip("\n").split("\t"))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        print(f"\0{os.waitstatus_to_exitcode(status)}", flush=True)
