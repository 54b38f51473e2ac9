"""The pre-receive hook: the second guard. Stdlib only; it trusts neither `serve` nor the guest.

It is installed as a copy with `policy.py` beside it, and run by `python -IS`. Standard input is git's `<old> <new>
<ref>` lines. Exit code 0 lets the push go on. Any other code, including after an error in the hook itself, refuses it.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LISTED = "%(objectname) %(objecttype) %(objectsize)"


def main() -> int:
    """Returns the exit code. Prints on stderr, which the guest sees, what was refused and what is allowed."""
    if not os.environ.get("GITMIRROR_PUSH"):
        print("gitmirror: refused: this push did not come through gitmirror and is in no log", file=sys.stderr)
        return 1
    # -I removes the script's own directory from the path. It is put first, so that `policy` can be nothing else.
    sys.dont_write_bytecode = True
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import policy  # type: ignore[import-not-found]

    commands = []
    for line in sys.stdin.buffer:
        old, new, ref = line.decode("utf-8", "surrogateescape").rstrip("\n").split(" ", 2)
        commands.append((old, new, ref))
    sessions = os.environ.get("GITMIRROR_SESSIONS")
    if sessions is None:
        print("gitmirror: refused: nothing says which sessions this guest may write", file=sys.stderr)
        return 1
    patterns = tuple(sessions.split())
    refused = policy.review(commands, patterns)
    quarantine = os.environ.get("GIT_QUARANTINE_PATH")
    if not refused and (reason := not_commits([new for _, new, _ in commands])):
        refused = {ref: reason for _, _, ref in commands}
    if not refused and quarantine and (reason := too_much(quarantine, policy)):
        refused = {ref: reason for _, _, ref in commands}
    for ref, reason in list(refused.items())[: policy.MOST_REFS]:
        print(f"gitmirror: refused {ref!a}: {reason}", file=sys.stderr)
    if refused:
        allowed = policy.ALLOWED if patterns == policy.EVERY_SESSION else policy.named(patterns) or "nothing"
        print(f"gitmirror: allowed is {allowed}", file=sys.stderr)
    return 1 if refused or not commands else 0


def not_commits(oids: list[str]) -> str | None:
    """Why new tips are refused, or None: a turn must be a commit, to have a history and something to check out."""
    kinds = run_git(None, "\n".join([*oids, ""]).encode(), "--batch-check=%(objecttype)").decode().split("\n")[:-1]
    others = [f"{oid} is a {kind}" for oid, kind in zip(oids, kinds, strict=True) if kind != "commit"]
    return f"a recorded object has to be a commit, but {others[0]}" if others else None


def too_much(quarantine: str, policy: Any) -> str | None:
    """Why the objects are refused, or None: small packs can hold huge objects, few trees can name millions of files."""
    listed = run_git(quarantine, b"", "--batch-all-objects", "--unordered", f"--batch-check={_LISTED}")
    objects = [line.split() for line in listed.splitlines()]
    size = sum(int(fields[2]) for fields in objects)
    if size > policy.MOST_UNPACKED:
        return f"its objects are {size} bytes unpacked, at most {policy.MOST_UNPACKED} are allowed"
    trees = [fields[0] for fields in objects if fields[1] == b"tree"]
    if not trees:
        return None
    files = policy.count_files(policy.parse_trees(run_git(quarantine, b"\n".join(trees) + b"\n", "--batch")))
    if files > policy.MOST_FILES:
        return f"its new directories name more than {policy.MOST_FILES} files"
    return None


def run_git(quarantine: str | None, stdin: bytes, *arguments: str) -> bytes:
    """Runs `git cat-file`, only on the quarantine if given. Importing `subprocess` would take longer than this does."""
    environment = dict(os.environ)
    if quarantine:
        environment.pop("GIT_ALTERNATE_OBJECT_DIRECTORIES", None)
        environment["GIT_OBJECT_DIRECTORY"] = quarantine
    request = os.memfd_create("request")
    os.write(request, stdin)
    os.lseek(request, 0, os.SEEK_SET)
    out, into = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, request, 0), (os.POSIX_SPAWN_DUP2, into, 1)]
    pid = os.posix_spawnp("git", ["git", "cat-file", *arguments], environment, file_actions=actions)
    os.close(into)
    os.close(request)
    with os.fdopen(out, "rb") as answer:
        data = answer.read()
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
        raise OSError("git cat-file failed")
    return data


if __name__ == "__main__":
    try:
        code = main()
    except BaseException as error:
        print(f"gitmirror: refused: the guard itself failed: {error!r}", file=sys.stderr)
        code = 1
    sys.stderr.flush()
    os._exit(code)
