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
        if os.access(os.__file__, os.R_OK):
            raise
        # It was run as root and has become the owner of the state directory, who can import nothing.
        sys.stderr.write(
            f"error: the state directory belongs to user {os.geteuid()}, "
            f"who may not read this Python ({sys.executable})\n"
            "hint: run the command with one that everybody may read, such as /usr/bin/python3\n"
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
