"""libgit2 as a client: `clone URL DIR DEPTH`, `fetch DIR`, `push DIR REFSPEC`. A depth of 0 is the whole history.

`$HEADER` is sent with each request, if it is set.
"""

from __future__ import annotations

import os
import sys

import pygit2

from tests.clients.programs.again import again


class Callbacks(pygit2.RemoteCallbacks):  # type: ignore[misc]
    """Prints what the server says, and what became of each ref, as every program on libgit2 has to."""

    refused = False

    def sideband_progress(self, string: str) -> None:
        """Called with what the server prints."""
        print(string, end="", file=sys.stderr)

    def custom_headers(self) -> list[str] | None:
        """Called before each connection."""
        header = os.environ.get("HEADER")
        return [header] if header else None

    def push_update_reference(self, refname: str, message: str | None) -> None:
        """Called for each ref that was pushed, with the reason if it was refused."""
        if message is not None:
            self.refused = True
            print(f"{refname}: {message}", file=sys.stderr)


def main(action: str, *args: str) -> int:
    """Run one action and return the exit code: 1 if it failed or a ref was refused."""
    callbacks = Callbacks()
    try:
        if action == "clone":
            url, directory, depth = args
            pygit2.clone_repository(url, directory, depth=int(depth), callbacks=callbacks)
        elif action == "fetch":
            pygit2.Repository(args[0]).remotes["origin"].fetch(callbacks=callbacks)
        else:
            directory, refspec = args
            repository = pygit2.Repository(directory)
            source, _, target = refspec.partition(":")
            # libgit2 takes no HEAD as a source.
            forced, source = "+" * source.startswith("+"), source.removeprefix("+")
            source = repository.head.name if source == "HEAD" else source
            repository.remotes["origin"].push([f"{forced}{source}:{target}"], callbacks=callbacks)
    except pygit2.GitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return int(callbacks.refused)


again(main)
