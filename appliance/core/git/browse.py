"""Reading recorded commits with GitPython, and laying one out as a workspace, for commands and the TUI."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import git as gitpython

from appliance.core.errors import GitmirrorError, UsageError
from appliance.core.git.diff_output import print_diff
from appliance.core.git.history import Changed, parse_shortstat
from appliance.core.models import CommitText, FileChange, RefText


class Browser:
    """Reads the mirror at `path`. `environment` is the whole environment of the git processes that GitPython starts."""

    def __init__(self, path: Path, environment: Mapping[str, str]) -> None:
        self._path = path
        self._environment = dict(environment)
        try:
            self._repo = gitpython.Repo(path)
        except (gitpython.InvalidGitRepositoryError, gitpython.NoSuchPathError) as error:
            raise GitmirrorError(f"there is no mirror at {path}", hint="its repository may have been purged") from error
        self._repo.git.update_environment(**self._environment)

    def close(self) -> None:
        """Ends the processes that GitPython keeps."""
        self._repo.close()

    def changed(self, old: str | None, new: str) -> Changed:
        """The diff of two commits in numbers. Raises GitmirrorError."""
        if old == new:
            return Changed()
        with _in_words():
            return parse_shortstat(
                self._repo.git.diff(
                    "--shortstat", "--no-ext-diff", "--no-textconv", old or self._empty_tree(), new, "--"
                )
            )

    def log(self, base: str | None, tip: str) -> Iterator[CommitText]:
        """Commits of `tip` that are not of `base`, newest first. Raises GitmirrorError."""
        with _in_words():
            for commit in self._repo.iter_commits(f"{base}..{tip}" if base else tip):
                yield CommitText(commit.hexsha, str(commit.summary), str(commit.author), int(commit.committed_date))

    def commit(self, oid: str) -> CommitText:
        """One commit. Raises GitmirrorError."""
        with _in_words():
            commit = self._repo.commit(oid)
            return CommitText(commit.hexsha, str(commit.summary), str(commit.author), int(commit.committed_date))

    def refs(self, limit: int) -> list[RefText]:
        """Branches and tags, the newest commit first, `limit` at most. Raises GitmirrorError."""
        with _in_words():
            said = self._repo.git.for_each_ref(
                "refs/heads",
                "refs/tags",
                sort="-creatordate",
                count=limit,
                format="%(refname)%00%(objectname)%00%(creatordate:unix)%00%(subject)",
            )
        found = [line.split("\0", 3) for line in str(said).splitlines()]
        return [RefText(ref, oid, int(at or 0), subject) for ref, oid, at, subject in found]

    def files(self, old: str | None, new: str) -> list[FileChange]:
        """What differs between two commits, a file each, renames as one. Raises GitmirrorError."""
        words = self._diff(old, new, "--numstat", "-z").split(b"\0")
        found: list[FileChange] = []
        while len(words) > 1:
            added, removed, name = words.pop(0).split(b"\t", 2)
            before, path = (name, name) if name else (words.pop(0), words.pop(0))
            binary = added == b"-"
            numbers = (0, 0) if binary else (int(added), int(removed))
            found.append(FileChange(os.fsdecode(path), os.fsdecode(before), *numbers, binary))
        return found

    def file_diff(self, old: str | None, new: str, change: FileChange, limit: int) -> tuple[str, bool]:
        """The diff of one file as text, and whether it was cut after `limit` bytes. Raises GitmirrorError."""
        said = self._diff(old, new, "--", *dict.fromkeys([change.before, change.path]))
        return said[:limit].decode("utf-8", "replace"), len(said) > limit

    def patch(self, old: str | None, new: str) -> bytes:
        """The whole diff, such that `git apply` takes it. Raises GitmirrorError."""
        return self._diff(old, new, "--binary")

    def _diff(self, old: str | None, new: str, *options: str) -> bytes:
        split = options.index("--") if "--" in options else len(options)
        with _in_words():
            commits = (old or self._empty_tree(), new)
            fixed = ("--no-ext-diff", "--no-textconv", "--no-color", "--find-renames")
            argv = ["git", "--literal-pathspecs", "diff", *fixed, *options[:split], *commits, *options[split:]]
            return bytes(self._repo.git.execute(argv, stdout_as_string=False, strip_newline_in_stdout=False))

    def print_diff(self, old: str | None, new: str, options: Sequence[str], *, raw: bool) -> bool:
        """Writes the diff to stdout: its bytes, or `raw` False what `diff_output` makes of them.

        Returns whether anything was escaped. Raises GitmirrorError.
        """
        with _in_words():
            commits = (old or self._empty_tree(), new)
        fixed = ("--no-ext-diff", "--no-textconv", "--no-color", "--find-renames")
        argv = ["git", "--git-dir", str(self._path), "diff", *fixed, *options, *commits, "--"]
        return print_diff(argv, self._environment, raw=raw, patch=not options)

    def _empty_tree(self) -> str:
        """git knows it without having it; which it is depends on the repository's hash."""
        return str(self._repo.git.hash_object("-t", "tree", os.devnull))

    def checkout(self, commit: str, directory: Path, *, branch: str, origin: str) -> None:
        """A worktree of its own at `commit` on a new branch, with `origin` at the upstream.

        Raises UsageError when `directory` is there and not empty, GitmirrorError; then it is as it was.
        """
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise UsageError(f"{directory} is not empty", hint="name a directory that is not there yet")
        existed = directory.exists()
        try:
            with _in_words():
                directory.mkdir(parents=True, exist_ok=True)
                repo = gitpython.Repo.init(directory)
                repo.git.update_environment(**self._environment)
                repo.git.fetch(f"file://{self._path}", f"{commit}:refs/heads/{branch}", quiet=True, no_tags=True)
                repo.create_remote("origin", origin)
                repo.git.checkout(branch, quiet=True)
                repo.close()
        except BaseException:
            _remove(directory, keep_top=existed)
            raise


class _in_words:
    """Turns GitPython's errors into ours."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, gitpython.GitCommandError):
            said = (error.stderr or "").strip().removeprefix("stderr:").strip(" '")
            raise GitmirrorError(f"git failed: {said or error.status}") from error
        if isinstance(error, PermissionError):
            raise GitmirrorError(
                f"{error.filename} cannot be written: {error.strerror}",
                hint="choose a place that the owner of the state directory may write: as root, this acts as that user",
            ) from error
        if isinstance(error, (gitpython.BadName, ValueError, OSError)):
            raise GitmirrorError(f"the repository cannot be read: {error}") from error


def _remove(directory: Path, *, keep_top: bool) -> None:
    for entry in list(directory.iterdir()) if directory.is_dir() else []:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    if not keep_top and directory.is_dir():
        directory.rmdir()
