"""Reads the `.gitmodules` of a commit: the submodules that it names, their URLs, and the entries that git refuses.

git itself parses the file. The rules are git's own (`check_submodule_name` in submodule-config.c, `relative_url` in
remote.c, `check_submodule_url` in fsck.c), and stricter where no repository in use needs what git permits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from appliance.core.git.command import GitError
from appliance.core.git.mirror import Mirror

FILE = ".gitmodules"
MOST_BYTES = 256 * 2**10
"""The largest `.gitmodules` that is read: about 2,000 entries."""
MOST_NAME = 255
"""Bytes of a part of a path, which is a file name."""
MOST_PATH = 1024
"""Bytes of a path or a name. Four levels of them fit the 4,096 bytes that the kernel takes."""
MOST_DIRECTORIES = 256 * 2**10
"""The most characters in the paths of the directories that submodules are in: Linux takes command lines of 2 MiB."""
DEADLINE = 60.0

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCP = re.compile(r"(?:[\w.+-]+@)?(?:[A-Za-z0-9][\w.-]*|\[[0-9A-Fa-f:]+\]):(?![/:]).*")
_SCHEMES = ("https", "http", "git", "ssh", "git+ssh", "ssh+git")
_IGNORED_BY_HFS = re.compile("[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]")


class Refused(ValueError):
    """A `.gitmodules`, or an entry of it, that git or this node refuses; the message says why."""


@dataclass(frozen=True)
class Entry:
    """One submodule as `.gitmodules` names it. `update` is empty when the file does not say how to update it."""

    name: str
    path: str
    url: str
    update: str = ""


@dataclass(frozen=True)
class TreeEntry:
    """One entry of a tree: its mode as git prints it, and its object id."""

    mode: str
    oid: str

    @property
    def is_gitlink(self) -> bool:
        """Whether it is the commit of a submodule."""
        return self.mode == "160000"


async def list_tree(mirror: Mirror, commit: str, directories: Iterable[str] = ()) -> dict[str, TreeEntry]:
    """The entries of a commit's top directory, or of the `directories`, by path. Raises GitError.

    A directory that does not exist has no entries.
    """
    below = [f"{directory}/" for directory in directories]
    words = ("ls-tree", "-z", "--full-tree", f"{commit}^{{commit}}", *(("--", *below) if below else ()))
    output = (await mirror.git.run(*words, cwd=mirror.path, deadline=DEADLINE)).stdout
    found: dict[str, TreeEntry] = {}
    for line in output.decode("utf-8", "surrogateescape").split("\0"):
        facts, _, path = line.partition("\t")
        if path:
            mode, _, oid = facts.split(" ")
            found[path] = TreeEntry(mode, oid)
    return found


async def read_entries(mirror: Mirror, file: TreeEntry) -> list[Entry]:
    """The submodules that a `.gitmodules` names. Raises Refused, GitError."""
    if not file.mode.startswith("100"):
        raise Refused(f"{FILE} is not a file")
    size = int((await mirror.git.run("cat-file", "-s", file.oid, cwd=mirror.path, deadline=DEADLINE)).stdout)
    if size > MOST_BYTES:
        raise Refused(f"{FILE} is larger than {MOST_BYTES // 2**10} KiB")
    # Without --no-includes, git also reads the files of this node that `include.path` in the blob names.
    words = ("config", "--no-includes", f"--blob={file.oid}", "--null", "--list")
    try:
        output = (await mirror.git.run(*words, cwd=mirror.path, deadline=DEADLINE)).stdout
    except GitError as error:
        if error.timed_out:
            raise
        raise Refused(f"git cannot read {FILE}") from error
    return parse_entries(output)


def parse_entries(output: bytes) -> list[Entry]:
    """The entries in what `git config --null --list` printed; the last of equal keys counts. Raises Refused."""
    found: dict[str, dict[str, str]] = {}
    for item in output.decode("utf-8", "surrogateescape").split("\0"):
        key, has_value, value = item.partition("\n")
        section, _, rest = key.partition(".")
        name, dot, variable = rest.rpartition(".")
        if section != "submodule" or not dot or not has_value:
            continue
        if variable == "update" and value not in ("checkout", "merge", "rebase", "none"):
            # git refuses the whole file because of these values. `!command` is CVE-2019-19604.
            raise Refused(f"{FILE} has a value of `update` that git refuses")
        found.setdefault(name, {})[variable] = value
    return [
        Entry(name, values.get("path", ""), values.get("url", ""), values.get("update", ""))
        for name, values in found.items()
    ]


def check_name(name: str) -> None:
    """Refuses a name that leads out of `.git/modules`, or that is not a path below it. Raises Refused."""
    parts = name.split("/")
    if ".." in re.split(r"[/\\]", name):
        raise Refused("its name leads out of .git/modules")
    if _is_odd(name) or any(part in ("", ".") or _is_like_git(part) for part in parts):
        raise Refused("its name is not one that git can store")


def check_path(path: str) -> None:
    """Refuses a path that git refuses in an index, or takes for an option. Raises Refused."""
    if path.startswith("-"):
        raise Refused("its path looks like an option")
    if _is_odd(path) or any(part in ("", ".", "..") or _is_like_git(part) for part in path.split("/")):
        raise Refused("its path is not one that git can store")


def _is_odd(path: str) -> bool:
    sizes = [len(part.encode("utf-8", "surrogateescape")) for part in path.split("/")]
    return bool(_CONTROL.search(path)) or max(sizes) > MOST_NAME or sum(sizes) + len(sizes) > MOST_PATH


def _is_like_git(part: str) -> bool:
    """Whether a file system may treat it as `.git`: one that ignores case, NTFS with its short names, or HFS+."""
    plain = _IGNORED_BY_HFS.sub("", part).casefold().split(":")[0].rstrip(". ")
    return plain in (".git", "git~1")


def is_relative(url: str) -> bool:
    """Whether a URL is relative to that of the repository whose `.gitmodules` has it."""
    return url.startswith(("./", "../"))


def check_url(url: str) -> None:
    """Refuses a URL that git refuses or runs a helper for. Raises Refused."""
    if not url:
        raise Refused("it has no URL")
    if url.startswith("-"):
        raise Refused("its URL looks like an option")
    if _CONTROL.search(url) or _CONTROL.search(unquote(url, errors="surrogateescape")):
        # CVE-2020-5260 and CVE-2020-11008: a newline in a URL splits what git tells its credential helper.
        raise Refused("its URL has control characters in it")
    if is_relative(url):
        rest = re.sub(r"^(?:\.{1,2}/)+", "", url)
        if rest.startswith((":", "/")):
            raise Refused("its URL leads out of its host")
        return
    if url.startswith("/") or url.startswith("file:///"):
        return
    scheme, separator, _ = url.partition("://")
    if separator and scheme in _SCHEMES:
        try:
            host = urlsplit(url).hostname
        except ValueError:
            host = None
        if not host or host.startswith("-"):
            raise Refused("its URL names no host")
        return
    if "::" in url.split("/", 1)[0] or not _SCP.fullmatch(url):
        raise Refused("its URL has a scheme that is not allowed")


def resolve_url(base: str, url: str) -> str:
    """The absolute URL of a submodule, as `git submodule init` writes it. `base` is absolute. Raises Refused."""
    check_url(url)
    if not is_relative(url):
        return url
    scheme, separator, _ = base.partition("://")
    base, colon = base.removesuffix("/"), False
    while is_relative(url):
        if url.startswith("./"):
            url = url[2:]
            continue
        url = url[3:]
        head, slash, _ = base.rpartition("/")
        if not slash:
            head, slash, _ = base.rpartition(":")
            if not slash:
                raise Refused("its URL leads out of its host")
            colon = True
        base = head
    resolved = f"{base}{':' if colon else '/'}{url}".removesuffix("/")
    check_url(resolved)
    if separator and not resolved.startswith(f"{scheme}://"):
        # CVE-2020-11008: with enough `../`, git would contact a host with the name `https`.
        raise Refused("its URL leads out of its host")
    return resolved


def ancestors_of(paths: Iterable[str]) -> list[str]:
    """The directories above these paths, without the top directory; each once.

    Raises Refused if git cannot be given so many.
    """
    found: dict[str, None] = {}
    size = 0
    for path in paths:
        parts = path.split("/")
        above = ["/".join(parts[:count]) for count in range(1, len(parts))]
        size += sum(len(directory) for directory in above if directory not in found)
        if size > MOST_DIRECTORIES:
            raise Refused(f"{FILE} names too many directories")
        found |= dict.fromkeys(above)
    return list(found)


def has_a_double(path: str, folded: Mapping[str, int]) -> bool:
    """Whether the path, or a directory above it, differs from another path in case alone (CVE-2024-32002).

    `folded` counts the paths of the tree by their case-folded form. On a file system that ignores case, the other one
    may be a symbolic link that leads elsewhere.
    """
    parts = path.split("/")
    return any(folded.get("/".join(parts[:count]).casefold(), 0) > 1 for count in range(1, len(parts) + 1))
