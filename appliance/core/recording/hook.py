"""The pre-receive hook: the second guard. Stdlib only; it trusts neither `serve` nor the guest.

Installed as a copy with `policy.py` beside it and run by `python -IS`. Standard input is git's
`<old> <new> <ref>` lines. Exit 0 lets the push go on; anything else, any error of its own too, refuses it.
"""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Returns the exit code; says on stderr, which the guest sees, what was refused and what is allowed."""
    if not os.environ.get("GITMIRROR_PUSH"):
        print("gitmirror: refused: this push did not come through gitmirror and is in no log", file=sys.stderr)
        return 1
    # -I leaves out the script's own directory; it is put first, so that nothing else can be `policy`.
    sys.dont_write_bytecode = True
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import policy  # type: ignore[import-not-found]

    commands = []
    for line in sys.stdin.buffer:
        old, new, ref = line.decode("utf-8", "surrogateescape").rstrip("\n").split(" ", 2)
        commands.append((old, new, ref))
    refused = policy.review(commands)
    for ref, reason in list(refused.items())[: policy.MOST_REFS]:
        print(f"gitmirror: refused {ref!a}: {reason}", file=sys.stderr)
    if refused:
        print(f"gitmirror: allowed is {policy.ALLOWED}", file=sys.stderr)
    return 1 if refused or not commands else 0


if __name__ == "__main__":
    try:
        code = main()
    except BaseException as error:
        print(f"gitmirror: refused: the guard itself failed: {error!r}", file=sys.stderr)
        code = 1
    sys.stderr.flush()
    os._exit(code)
