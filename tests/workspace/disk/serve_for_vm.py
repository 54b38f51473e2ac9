"""A mirror and two drives of one repository, for a guest in a virtual machine: `scripts/try_in_vm.sh` runs this.

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
from tests.workspace.disk.drives_lab import make_drives, plant_data_header

HOST = "10.0.2.2"
"""The loopback of this machine, as a guest of qemu's user-mode network sees it."""


def main(directory: Path, files: int) -> None:
    """Serve until stdin ends. The mirror is one commit ahead of the drives."""
    bare = directory / "bare.git"
    generate_repository(bare, files=files, commits=12)
    plant_data_header(bare)
    with HttpUpstream(directory / "upstream") as upstream:
        upstream.add(WIDGETS, bare)
        drives = make_drives(
            bare, directory / "made", repository=WIDGETS, url=upstream.url(WIDGETS), history="full", form="erofs"
        )
        assert drives.data
        drives.tree.rename(directory / "tree")
        drives.data.rename(directory / "data")
        with Serve(directory / "state", repos=[upstream.url(WIDGETS)], refresh=SETTLED).start() as serve:
            serve.wait_for_repo(WIDGETS)
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
