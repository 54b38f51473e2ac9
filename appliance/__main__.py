"""The entry point of `gitmirror.pyz`, of the console script `gitmirror` and of `python -m appliance`."""

from __future__ import annotations

import sys

from appliance import version_text


def main() -> None:
    """Answers `--version` by itself, and hands everything else to the command line.

    Scripts and health checks ask for the version often; the command line and what it imports cost a
    hundred milliseconds that this answer does not need.
    """
    if sys.argv[1:] == ["--version"]:
        print(version_text())
        return
    from appliance.cli.main import cli

    cli(prog_name="gitmirror.pyz")


if __name__ == "__main__":
    main()
