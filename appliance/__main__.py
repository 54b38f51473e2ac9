"""The entry point of `gitmirror.pyz`, of the console script `gitmirror` and of `python -m appliance`."""

from __future__ import annotations

import os
import sys

from appliance import version_text


def main() -> None:
    """Prints the version for `--version`, and hands every other argument list to the command line.

    Scripts and health checks ask for the version often, and importing the command line would take a hundred
    milliseconds.
    """
    if sys.argv[1:] == ["--version"]:
        try:
            print(version_text(), flush=True)
        except BrokenPipeError:
            # The reader has closed the pipe; click exits with 1 here too. An orderly exit would try to flush
            # the line again and print an error.
            os._exit(1)
        return
    if "_GITMIRROR_COMPLETE" in os.environ:
        _complete()
        return
    from appliance.cli.main import cli

    try:
        cli(prog_name="gitmirror.pyz")
    except ImportError:
        # It was run as root and has become the owner of the state directory, who can import nothing.
        unreadable = [path for path in (os.__file__, __file__) if not os.access(path, os.R_OK)]
        if not unreadable:
            raise
        what = f"this Python ({sys.executable})" if os.__file__ in unreadable else os.path.dirname(__file__)
        sys.stderr.write(
            f"error: the state directory belongs to user {os.geteuid()}, who may not read {what}\n"
            "hint: run the command with a Python, and from a place, that everybody may read\n"
        )
        sys.exit(1)


def _complete() -> None:
    """Answers a shell that completes a word. A traceback, or anything else, would land on the line being typed."""
    try:
        from appliance.cli.completing import answer
        from appliance.cli.main import cli

        for line in answer(cli, os.environ):
            print(line)
        sys.stdout.flush()
    except BaseException:
        os._exit(1)


if __name__ == "__main__":
    main()
