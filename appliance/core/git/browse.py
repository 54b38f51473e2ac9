"""Reads recorded commits with GitPython, and packs one for a checkout, for commands and the TUI."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import git as gitpython

from appliance.core.errors import GitmirrorError
from appliance.core.git.diff_output import print_diff
from appliance.core.git.error_lines import last_errors
from appliance.core.git.history import Changed, parse_shortstat
from appliance.core.models import CommitText, FileChange, RefText


class Browser:
    """Reads the mirror at `path`. `environment` is the full environment of the git processes that GitPython starts."""

    def __init__(self, path: Path, environment: Mapping[str, str]) -> None:
        self._path = path
        self._environment = dict(environment)
        try:
            self._repo = gitpython.Repo(path)
        except (gitpython.InvalidGitRepositoryError, gitpython.NoSuchPathError) as error:
            raise GitmirrorError(f"there is no mirror at {path}", hint="its repository may have been purged") from error
        self._repo.git.update_environment(**self._environment)

    def close(self) -> None:
        """Ends the processes that GitPython keeps running."""
        self._repo.close()

    def changed(self, old: str | None, new: str) -> Changed:
        """The size of the diff between two commits. Raises GitmirrorError."""
        if old == new:
            return Changed()
        with _translated_errors():
            return parse_shortstat(
                self._repo.git.diff(
                    "--shortstat", "--no-ext-diff", "--no-textconv", old or self._empty_tree(), new, "--"
                )
            )

    def log(self, base: str | None, tip: str) -> Iterator[CommitText]:
        """Commits reachable from `tip` but not from `base`, newest first. Raises GitmirrorError."""
        with _translated_errors():
            for commit in self._repo.iter_commits(f"{base}..{tip}" if base else tip):
                yield CommitText(commit.hexsha, str(commit.summary), str(commit.author), int(commit.committed_date))

    def commit(self, oid: str) -> CommitText:
        """One commit. Raises GitmirrorError."""
        with _translated_errors():
            commit = self._repo.commit(oid)
            return CommitText(commit.hexsha, str(commit.summary), str(commit.author), int(commit.committed_date))

    def refs(self, limit: int) -> list[RefText]:
        """At most `limit` branches and tags, the newest commit first. Raises GitmirrorError."""
        with _translated_errors():
            output = self._repo.git.for_each_ref(
                "refs/heads",
                "refs/tags",
                sort="-creatordate",
                count=limit,
                format="%(refname)%00%(objectname)%00%(creatordate:unix)%00%(subject)",
            )
        lines = [line.split("\0", 3) for line in str(output).splitlines()]
        return [RefText(ref, oid, int(at or 0), subject) for ref, oid, at, subject in lines]

    def files(self, old: str | None, new: str) -> list[FileChange]:
        """One entry for each file that differs between two commits; a rename is one entry. Raises GitmirrorError."""
        fields = self._diff(old, new, "--numstat", "-z").split(b"\0")
        changes: list[FileChange] = []
        while len(fields) > 1:
            added, removed, name = fields.pop(0).split(b"\t", 2)
            before, path = (name, name) if name else (fields.pop(0), fields.pop(0))
            binary = added == b"-"
            numbers = (0, 0) if binary else (int(added), int(removed))
            changes.append(FileChange(os.fsdecode(path), os.fsdecode(before), *numbers, binary))
        return changes

    def file_diff(self, old: str | None, new: str, change: FileChange, limit: int) -> tuple[str, bool]:
        """The diff of one file as text, and whether it was cut after `limit` bytes. Raises GitmirrorError."""
        diff = self._diff(old, new, "--", *dict.fromkeys([change.before, change.path]))
        return diff[:limit].decode("utf-8", "replace"), len(diff) > limit

    def patch(self, old: str | None, new: str) -> bytes:
        """The whole diff in a form that `git apply` accepts. Raises GitmirrorError."""
        return self._diff(old, new, "--binary")

    def _diff(self, old: str | None, new: str, *options: str) -> bytes:
        split = options.index("--") if "--" in options else len(options)
        with _translated_errors():
            commits = (old or self._empty_tree(), new)
            fixed = ("--no-ext-diff", "--no-textconv", "--no-color", "--find-renames")
            argv = ["git", "--literal-pathspecs", "diff", *fixed, *options[:split], *commits, *options[split:]]
            return bytes(self._repo.git.execute(argv, stdout_as_string=False, strip_newline_in_stdout=False))

    def print_diff(self, old: str | None, new: str, options: Sequence[str], *, raw: bool, colour: bool) -> bool:
        """Writes the diff to stdout: git's exact bytes if `raw`, otherwise as `diff_output` renders them.

        Returns whether anything was escaped. Raises GitmirrorError.
        """
        with _translated_errors():
            commits = (old or self._empty_tree(), new)
        fixed = ("--no-ext-diff", "--no-textconv", "--no-color", "--find-renames")
        argv = ["git", "--git-dir", str(self._path), "diff", *fixed, *options, *commits, "--"]
        return print_diff(argv, self._environment, raw=raw, patch=not options, colour=colour)

    def _empty_tree(self) -> str:
        """git knows the empty tree without storing it; its id depends on the repository's hash algorithm."""
        return str(self._repo.git.hash_object("-t", "tree", os.devnull))

    @contextmanager
    def packed(self, commit: str) -> Iterator[int]:
        """A descriptor from which a pack of everything that `commit` reaches can be read. Raises GitmirrorError."""
        argv = ["git", "--git-dir", str(self._path), "pack-objects", "--stdout", "--revs", "--delta-base-offset", "-q"]
        with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as said:
            asked.write(f"{commit}\n".encode())
            asked.seek(0)
            with subprocess.Popen(
                argv, env=self._environment, stdin=asked, stdout=subprocess.PIPE, stderr=said
            ) as packing:
                assert packing.stdout is not None
                try:
                    yield packing.stdout.fileno()
                except OSError:
                    packing.kill()
                    raise
                except GitmirrorError:
                    # If git could not pack it, that is why it could not be unpacked. A reader that left early is none.
                    packing.stdout.close()
                    if packing.wait() <= 0 or packing.returncode == _BROKEN_PIPE:
                        raise
                if packing.wait() > 0:
                    said.seek(0)
                    words = last_errors(said.read().decode(errors="replace"))
                    raise GitmirrorError(f"git failed: {words or f'exit code {packing.returncode}'}")


_BROKEN_PIPE = 128 + signal.SIGPIPE


class _translated_errors:
    """Turns GitPython's errors into ours."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, gitpython.GitCommandError):
            stderr = (error.stderr or "").strip().removeprefix("stderr:").strip(" '")
            raise GitmirrorError(f"git failed: {stderr or f'exit code {error.status}'}") from error
        if isinstance(error, (gitpython.BadName, ValueError, OSError)):
            raise GitmirrorError(f"the repository cannot be read: {error}") from error
