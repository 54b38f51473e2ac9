"""Generates repositories that look like real ones, in a fraction of a second, and the same for the same seed.

Everything goes through one `git fast-import` stream: a tree of 300 files with 50 commits takes about 0.1 s, while
`git commit` would take seconds.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.gitutil import DATE, GitFailed, clean_env, git, git_result
from tests.support.prose import NOUNS, VERBS, edit_text, make_sentence, make_text

ODD_NAMES = (
    "-leading-dash.txt",
    "docs/a name with spaces.md",
    "docs/naïve résumé ☃.md",
    'docs/"quoted".txt',
)
"""Paths in every generated repository that reveal missing quoting."""

_AREAS = (
    ("src/server", "py"),
    ("src/server/handlers", "py"),
    ("src/client", "py"),
    ("src/common", "py"),
    ("tests/unit", "py"),
    ("tests/integration", "py"),
    ("charts/app/templates", "yaml"),
    ("deploy/production", "yaml"),
    ("docs/guides", "md"),
    ("docs/decisions", "md"),
    ("web/components", "ts"),
    ("web/styles", "css"),
    ("scripts", "sh"),
)
_AUTHORS = (
    ("Ada Moreau", "ada@example.com"),
    ("Björn Ångström", "bjorn@example.com"),
    ("Chen Wei", "chen@example.com"),
)
_TEXTS = (".py", ".yaml", ".md", ".ts", ".css")
_KEPT = ("README.md", "src/common/__init__.py", *ODD_NAMES)
"""Files that no commit edits, moves or deletes, so that a test finds them in every tree."""
_BRANCHES = ("develop", "feature/search", "release/1.0", "fix/login-timeout", "feature/export")
_START = 1_600_000_000


@dataclass(frozen=True)
class _File:
    """A file of one tree: its mode as git writes it, and the mark of its blob."""

    mode: str
    mark: int


_Tree = dict[str, _File]


@dataclass
class _Branch:
    """A branch while it grows: tip, tree, and the last tree that main and the branch had in common."""

    tip: int
    tree: _Tree
    base: _Tree
    merged: int


@dataclass
class _Stream:
    """A fast-import stream under construction. Marks count from 1."""

    parts: list[bytes] = field(default_factory=list)
    blobs: dict[int, bytes] = field(default_factory=dict)
    marks: int = 0
    clock: int = _START

    def blob(self, data: bytes) -> int:
        self.marks += 1
        self.blobs[self.marks] = data
        self.parts.append(b"blob\nmark :%d\n%s" % (self.marks, _data(data)))
        return self.marks

    def commit(self, branch: str, before: _Tree, after: _Tree, message: str, parents: tuple[int, ...]) -> int:
        self.marks += 1
        self.clock += 1800
        name, email = _AUTHORS[self.marks % len(_AUTHORS)]
        who = f"{name} <{email}> {self.clock} +0000\n".encode()
        head = f"commit refs/heads/{branch}\nmark :{self.marks}\n".encode()
        self.parts += [head, b"author ", who, b"committer ", who, _data(message.encode())]
        for word, parent in zip(("from", "merge"), parents, strict=False):
            self.parts.append(f"{word} :{parent}\n".encode())
        self.parts += [f"D {_quote(path)}\n".encode() for path in before if path not in after]
        for path, entry in after.items():
            if before.get(path) != entry:
                self.parts.append(f"M {entry.mode} :{entry.mark} {_quote(path)}\n".encode())
        return self.marks

    def point(self, ref: str, mark: int) -> None:
        self.parts.append(f"reset {ref}\nfrom :{mark}\n\n".encode())

    def tag(self, name: str, mark: int) -> None:
        who = f"tagger {_AUTHORS[0][0]} <{_AUTHORS[0][1]}> {self.clock} +0000\n"
        self.parts.append(f"tag {name}\nfrom :{mark}\n{who}".encode())
        self.parts.append(_data(f"Release {name}\n".encode()))


def generate_repository(
    path: Path,
    *,
    files: int = 300,
    commits: int = 50,
    branches: int = 4,
    tags: int = 6,
    seed: int = 1,
    bytes_per_file: int = 2000,
) -> Path:
    """Make a bare repository at `path` and return `path`.

    It has `commits` commits in total (including merges), `branches` branches with `main` as HEAD, `tags` tags that are
    alternately annotated and lightweight, and about `files` files of `bytes_per_file` bytes on average, including an
    executable, a symlink, an empty file, a binary, the `ODD_NAMES` and a `.gitattributes`. The same arguments give the
    same ids.
    """
    rng = random.Random(seed)
    stream = _Stream()
    main = _plant(stream, rng, files, bytes_per_file)
    others: dict[str, _Branch] = {}
    names = [_BRANCHES[n] if n < len(_BRANCHES) else f"topic/{n}" for n in range(branches - 1)]
    trunk = [main.tip]
    for turn in range(1, commits):
        name = names[turn // 2 % len(names)] if names and turn % 2 else ""
        ahead = [each for each in others.values() if each.tip != each.merged]
        if ahead and turn % 7 == 0:
            _merge(stream, rng.choice(ahead), main)
        elif name:
            if name not in others:
                others[name] = _Branch(main.tip, main.tree, main.tree, main.tip)
            _grow(stream, rng, name, others[name], bytes_per_file)
        else:
            _grow(stream, rng, "main", main, bytes_per_file)
        if main.tip != trunk[-1]:
            trunk.append(main.tip)
    for name in names:
        if name not in others:
            stream.point(f"refs/heads/{name}", main.tip)
    for n in range(tags):
        mark = trunk[(n + 1) * len(trunk) // (tags + 1)]
        if n % 2:
            stream.point(f"refs/tags/v0.{n}", mark)
        else:
            stream.tag(f"v0.{n}", mark)
    create_repository(path)
    _import(path, b"".join(stream.parts))
    return path


def create_repository(path: Path) -> Path:
    """Make an empty bare repository with HEAD on `main` that, like GitHub, allows filters and any object id."""
    git("init", "--quiet", "--bare", "--template=", "--initial-branch=main", str(path))
    return _behave_like_github(path)


def copy_repository(source: Path, path: Path) -> Path:
    """Copy a bare repository to `path` and return `path`. The copy also allows filters and any object id."""
    shutil.copytree(source, path, symlinks=True)
    return _behave_like_github(path)


def add_commit(bare: Path, branch: str, files: Mapping[str, str | bytes | None], message: str = "A change") -> str:
    """Commit `files` (None deletes one) on top of `branch` of a bare repository and return the commit's id.

    Creates the branch, without a parent, when it does not exist. Uses no worktree and takes about 10 ms.
    """
    tip = _tip(bare, branch)
    parts = [_head(branch, message), f"from {tip}\n".encode() if tip else b""]
    for path, content in files.items():
        if content is None:
            parts.append(f"D {_quote(path)}\n".encode())
        else:
            data = content.encode() if isinstance(content, str) else content
            parts.append(f"M 100644 inline {_quote(path)}\n".encode() + _data(data))
    return _import(bare, b"".join([*parts, b"get-mark :1\n"]))


def add_commits(bare: Path, branch: str, changes: Sequence[Mapping[str, str]], message: str = "A change") -> str:
    """Make a commit of each of `changes` on top of an existing branch, all by one process; return the last one's id."""
    parts = [_head(branch, message), f"from {_tip(bare, branch)}\n".encode()]
    for number, files in enumerate(changes):
        if number:
            parts.append(_head(branch, message))
        parts += [f"M 100644 inline {_quote(path)}\n".encode() + _data(data.encode()) for path, data in files.items()]
    return _import(bare, b"".join([*parts, b"get-mark :1\n"]))


def commit_entries(bare: Path, lines: Sequence[str]) -> str:
    """Commit exactly these lines of `git update-index --index-info` on top of `main`; return the commit's id.

    Unlike `add_commit`, this takes gitlinks and what no checkout would have.
    """
    env = clean_env(bare, GIT_INDEX_FILE=str(bare / "building"))
    (bare / "building").unlink(missing_ok=True)
    git("update-index", "--index-info", cwd=bare, input="".join(f"{line}\n" for line in lines), env=env)
    tree, parent = git("write-tree", cwd=bare, env=env), _tip(bare, "main")
    oid = git("commit-tree", "-m", "commit", *(("-p", parent) if parent else ()), tree, cwd=bare)
    git("update-ref", "refs/heads/main", oid, cwd=bare)
    return oid


def force_push(bare: Path, branch: str, *, depth: int = 1) -> str:
    """Replace the last `depth` commits of `branch` with one other commit, as a forced push does; return its id.

    The old tip stays in the repository as an unreachable object. Raises GitFailed when the branch does not exist.
    """
    tip = git("rev-parse", "--verify", f"refs/heads/{branch}", cwd=bare)
    code, parent, _ = git_result("rev-parse", "--quiet", "--verify", f"{tip}~{depth}^0", cwd=bare)
    tree = git("rev-parse", f"{tip}^{{tree}}", cwd=bare)
    start = f"from {parent}\n" if code == 0 else ""
    stream = _head(branch, f"Rewritten from {tip}") + f'{start}M 040000 {tree} ""\n'.encode()
    stream += b"M 100644 inline REWRITTEN\n" + _data(f"{tip}\n".encode())
    return _import(bare, stream + b"get-mark :1\n", "--force")


def rename_branch(bare: Path, old: str, new: str) -> None:
    """Rename a branch; HEAD follows if it was on it. `foo` to `foo/bar` and back works."""
    git("branch", "--move", old, new, cwd=bare)


def delete_branch(bare: Path, branch: str) -> None:
    """Delete a branch, even the one that HEAD is on. Raises GitFailed when it does not exist."""
    tip = git("rev-parse", "--verify", f"refs/heads/{branch}", cwd=bare)
    git("update-ref", "-d", f"refs/heads/{branch}", tip, cwd=bare)


def set_head(bare: Path, branch: str) -> None:
    """Make `branch` the default branch (it need not exist)."""
    git("symbolic-ref", "HEAD", f"refs/heads/{branch}", cwd=bare)


def _plant(stream: _Stream, rng: random.Random, files: int, size: int) -> _Branch:
    """Make the first commit, with the whole tree."""
    tree: _Tree = {
        ".gitattributes": _File("100644", stream.blob(b"* text=auto\n*.png binary\n*.sh text eol=lf\n")),
        "README.md": _File("100644", stream.blob(make_text(rng, "md", size))),
        "assets/logo.png": _File("100644", stream.blob(b"\x89PNG\r\n\x1a\n" + rng.randbytes(48 * 1024))),
        "src/common/__init__.py": _File("100644", stream.blob(b"")),
        "run.sh": _File("100755", stream.blob(b'#!/bin/sh\nexec python3 -m src.server "$@"\n')),
        "docs/latest": _File("120000", stream.blob(b"guides")),
    }
    for odd in ODD_NAMES:
        tree[odd] = _File("100644", stream.blob(make_text(rng, "md", 200)))
    while len(tree) < files:
        _put_new(stream, rng, tree, size)
    tip = stream.commit("main", {}, tree, "Start\n\nThe tree as it was handed over.\n", ())
    return _Branch(tip, tree, tree, tip)


def _grow(stream: _Stream, rng: random.Random, name: str, branch: _Branch, size: int) -> None:
    """Add one commit that edits some files and sometimes also adds, deletes or moves one."""
    tree = dict(branch.tree)
    texts = [path for path in tree if path.endswith(_TEXTS) and path not in _KEPT]
    for path in rng.sample(texts, min(len(texts), rng.randint(1, 6))):
        edited = edit_text(rng, stream.blobs[tree[path].mark], path.rpartition(".")[2])
        tree[path] = _File(tree[path].mode, stream.blob(edited))
    chance = rng.random()
    if chance < 0.3:
        _put_new(stream, rng, tree, size)
    elif chance < 0.4 and len(texts) > 20:
        del tree[rng.choice(texts)]
    elif chance < 0.5 and texts:
        moved = rng.choice(texts)
        folder, _, last = moved.rpartition("/")
        tree[f"{folder}/moved_{last}"] = tree.pop(moved)
    verb, noun = rng.choice(VERBS), rng.choice(NOUNS)
    message = f"{verb.capitalize()} the {noun}\n\n{make_sentence(rng)}\n"
    branch.tip = stream.commit(name, branch.tree, tree, message, (branch.tip,))
    branch.tree = tree


def _merge(stream: _Stream, side: _Branch, main: _Branch) -> None:
    """Merge `side` into main, file by file: a change on the side since the last merge wins."""
    tree = dict(main.tree)
    for path in side.base.keys() | side.tree.keys():
        if side.tree.get(path) == side.base.get(path):
            continue
        if path in side.tree:
            tree[path] = side.tree[path]
        else:
            tree.pop(path, None)
    tree = dict(sorted(tree.items()))
    main.tip = stream.commit("main", main.tree, tree, "Merge the branch\n", (main.tip, side.tip))
    main.tree, side.base, side.merged = tree, side.tree, side.tip


def _put_new(stream: _Stream, rng: random.Random, tree: _Tree, size: int) -> None:
    folder, kind = rng.choice(_AREAS)
    stem = f"{rng.choice(VERBS)}_{rng.choice(NOUNS)}"
    path = f"{folder}/{stem}.{kind}"
    if path in tree:
        path = f"{folder}/{stem}_{len(tree)}.{kind}"
    mode = "100755" if kind == "sh" else "100644"
    tree[path] = _File(mode, stream.blob(make_text(rng, kind, int(size * rng.uniform(0.2, 1.8)))))


def _behave_like_github(bare: Path) -> Path:
    settings = "[uploadpack]\n\tallowFilter = true\n\tallowAnySHA1InWant = true\n[gc]\n\tauto = 0\n"
    config = bare / "config"
    if settings not in config.read_text():
        with config.open("a") as end:
            end.write(settings)
    return bare


def _head(branch: str, message: str) -> bytes:
    who = f"A Tester <tester@example.com> {DATE}\n"
    head = f"commit refs/heads/{branch}\nmark :1\nauthor {who}committer {who}"
    return head.encode() + _data(message.encode())


def _tip(bare: Path, branch: str) -> str:
    # It is in a file of its own nearly always, and this is asked thousands of times.
    with contextlib.suppress(OSError):
        return (bare / "refs" / "heads" / branch).read_text().strip()
    code, tip, _ = git_result("rev-parse", "--quiet", "--verify", f"refs/heads/{branch}", cwd=bare)
    return tip if code == 0 else ""


def _import(bare: Path, stream: bytes, *options: str) -> str:
    args = ("fast-import", "--quiet", *options)
    code, stdout, stderr = git_result(*args, cwd=bare, input=stream)
    if code:
        for report in bare.glob("fast_import_crash_*"):
            report.unlink()
        raise GitFailed(args, code, stderr)
    return stdout


def _data(data: bytes) -> bytes:
    return b"data %d\n%s\n" % (len(data), data)


def _quote(path: str) -> str:
    if path.startswith('"') or "\n" in path or "\\" in path:
        escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    return path
