"""A mirror that leases two drives of a repository, for a guest in a virtual machine: `scripts/try_in_vm.sh` runs this.

Writes `tree`, `data`, `guest.sh` and `addresses` (a shell file) to the given directory, prints `ready`, and serves on
loopback until its stdin ends.
"""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

from tests.conftest import WIDGETS
from tests.support.generate import add_commit, generate_repository
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream
from tests.workspace.conftest import SETTLED

HOST = "10.0.2.2"
"""The loopback of this machine, as a guest of qemu's user-mode network sees it."""


def main(directory: Path, files: int) -> None:
    """Serve until stdin ends."""
    bare = directory / "bare.git"
    generate_repository(bare, files=files, commits=12)
    with HttpUpstream(directory / "upstream") as upstream:
        upstream.add(WIDGETS, bare)
        with Serve(directory / "state", repos=[upstream.url(WIDGETS)], refresh=SETTLED).start() as serve:
            serve.wait_for_repo(WIDGETS)
            for drive in serve.cli_json("disk", WIDGETS)["drives"]:
                (directory / drive["role"]).symlink_to(drive["path"])
            with urlopen(f"{serve.http_url}/guest.sh") as answer:
                (directory / "guest.sh").write_bytes(answer.read())
            http, (_, git_port) = urlsplit(serve.http_url).port, serve.git_address
            (directory / "addresses").write_text(
                f"export GITMIRROR_HTTP=http://{HOST}:{http} GITMIRROR_GIT=git://{HOST}:{git_port}\n"
            )
            print("ready", flush=True)
            # The guest asks for this as soon as it has used the drives as they are.
            for line in sys.stdin:
                if line.strip() == "move":
                    add_commit(upstream.path(WIDGETS), "main", {"README.md": "moved\n"})
                    serve.cli("refresh", WIDGETS)
                    print("moved", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
