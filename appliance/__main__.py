"""The entry point of `gitmirror.pyz`, of the console script `gitmirror` and of `python -m appliance`."""

from __future__ import annotations

import os
import sys

from appliance import version_text


def main() -> None:
    """Answers `--version` by itself, and hands everything else to the command line.

    Scripts and health checks ask for the version often; the command line and what it imports cost a
    hundred milliseconds that this answer does not need.
    """
    if sys.argv[1:] == ["--version"]:
        try:
            print(version_text(), flush=True)
        except BrokenPipeError:
            # The reader has gone, as click takes it too; an orderly exit would complain of the unwritten line.
            os._exit(1)
        return
    from appliance.cli.main import cli

    cli(prog_name="gitmirror.pyz")


if __name__ == "__main__":
    main()
