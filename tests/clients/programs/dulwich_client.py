"""dulwich as a client: `clone URL DIR DEPTH`, `fetch DIR`, `push DIR REFSPEC`. A depth of 0 is the whole history."""

from __future__ import annotations

import sys
from typing import BinaryIO

from dulwich import porcelain
from dulwich.errors import GitProtocolError, NotGitRepository

from tests.clients.programs.again import again


def main(action: str, *args: str) -> int:
    """Run one action and return the exit code: 1 if it failed or a ref was refused."""
    said: BinaryIO = sys.stderr.buffer
    try:
        if action == "clone":
            url, directory, depth = args
            porcelain.clone(url, directory, depth=int(depth) or None, errstream=said).close()
        elif action == "fetch":
            porcelain.fetch(args[0], errstream=said)
        else:
            directory, refspec = args
            result = porcelain.push(directory, "origin", refspec, outstream=said, errstream=said)
            return int(any((result.ref_status or {}).values()))
    except (GitProtocolError, NotGitRepository, porcelain.Error) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


again(main)
