"""Generates a repository of about 5,000 files, 50 MB of text and 3,000 commits, the same every time.

It is packed like a mirror after years of fetches: one large pack from the beginning, a smaller pack for each larger
fetch since, and loose objects from the last small fetches. One `git fast-import` makes all commits.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from benchlib.processes import run_git

SEED = 20240229
START = 1_500_000_000
"""The first commit's date in Unix seconds; each later commit is two hours after the one before."""
LINES = 6000
"""The number of different lines that all files consist of."""
VERSION = 1
"""Increment it when the generator changes, so that repositories generated before are not used."""


@dataclass(frozen=True)
class Plan:
    """What to generate: the number of files and commits, the bytes of all files together, and the fetches."""

    files: int = 5000
    size: int = 50_000_000
    commits: int = 3000
    packs: int = 18
    loose_fetches: int = 8

    @property
    def name(self) -> str:
        """The name of the repository."""
        return f"generated-{self.files}"


TINY = Plan(files=60, size=120_000, commits=40, packs=3, loose_fetches=2)


def generate(plan: Plan, cache: Path, env: Mapping[str, str]) -> Path:
    """Returns the bare repository of a plan below `cache`, and generates it if needed. Raises BenchError."""
    path = cache / f"{plan.name}-{plan.commits}-v{VERSION}.git"
    if path.exists():
        return path
    growing, source = path.with_suffix(".new"), path.with_suffix(".source")
    for left in (growing, source):
        shutil.rmtree(left, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    for each in (source, growing):
        run_git("init", "--quiet", "--bare", "--template=", "--initial-branch=main", str(each), cwd=cache, env=env)
    run_git("fast-import", "--quiet", cwd=source, env=env, stdin=b"".join(_stream(plan)))
    run_git("repack", "--quiet", "-a", "-d", "-F", "--window=5", cwd=source, env=env)
    _fetch_in_steps(plan, source, growing, env)
    shutil.rmtree(source)
    growing.rename(path)
    return path


def _fetch_in_steps(plan: Plan, source: Path, into: Path, env: Mapping[str, str]) -> None:
    """Fetches step by step, as a mirror does over years. Fetches below 100 objects (git's limit) stay loose."""
    line = run_git("rev-list", "--first-parent", "--reverse", "main", cwd=source, env=env).split()
    end = len(line) - 4 * plan.loose_fetches
    first = end * 3 // 5
    stops = [first + (end - first) * step // (plan.packs - 1) for step in range(plan.packs)]
    stops += [end + 4 * step for step in range(1, plan.loose_fetches + 1)]
    for stop in stops:
        run_git("update-ref", "refs/heads/main", line[stop - 1], cwd=source, env=env)
        quiet = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance")
        run_git(*quiet, str(source), "+refs/heads/main:refs/heads/main", cwd=into, env=env)


def _stream(plan: Plan) -> Iterator[bytes]:
    """Yields a fast-import stream: all files in the first commit, then commits that edit a few lines in a few files."""
    rng = random.Random(SEED)
    pool = _lines(rng)
    average = sum(map(len, pool)) / len(pool)
    paths = [_path(rng, number) for number in range(plan.files)]
    # Most files are small and a few are large, as in real repositories.
    weights = [rng.paretovariate(2.0) for _ in paths]
    scale = plan.size / average / sum(weights)
    contents: dict[str, list[bytes]] = {}
    for path, weight in zip(paths, weights, strict=True):
        contents[path] = [b"// %s\n" % path.encode(), *rng.choices(pool, k=max(1, round(weight * scale)))]
    yield _commit(0, "Begin", contents, paths)
    for number in range(1, plan.commits):
        # A commit touches a few neighbouring files rather than files everywhere.
        centre = rng.randrange(plan.files)
        touched = sorted({paths[(centre + rng.randrange(40)) % plan.files] for _ in range(rng.randint(1, 4))})
        for path in touched:
            lines = contents[path]
            for _ in range(rng.randint(1, 6)):
                lines[rng.randrange(len(lines))] = b"    %06x %s" % (rng.getrandbits(24), rng.choice(pool))
        yield _commit(number, f"Change {', '.join(touched)}", contents, touched)


def _commit(number: int, message: str, contents: Mapping[str, list[bytes]], touched: list[str]) -> bytes:
    who = f"A Developer <developer@example.com> {START + 7200 * number} +0000\n".encode()
    parts = [b"commit refs/heads/main\nauthor ", who, b"committer ", who, _data(message.encode())]
    for path in touched:
        parts += [f"M 100644 inline {path}\n".encode(), _data(b"".join(contents[path]))]
    return b"".join(parts)


def _data(data: bytes) -> bytes:
    return b"data %d\n%s\n" % (len(data), data)


def _lines(rng: random.Random) -> list[bytes]:
    """Makes lines of words, indented like code, that compress about as well as source code."""
    syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "is", "on")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(2500)]
    numbers = count(1)
    return [
        f"{'    ' * rng.randint(0, 3)}{'_'.join(rng.choices(words, k=2))}({' '.join(rng.choices(words, k=5))},"
        f" {next(numbers)})\n".encode()
        for _ in range(LINES)
    ]


def _path(rng: random.Random, number: int) -> str:
    areas = ("server", "client", "common", "tools", "docs", "deploy", "web", "tests")
    folder = f"{areas[number % len(areas)]}/part{number // 160:02}/group{rng.randrange(4)}"
    return f"{folder}/file{number:05}.{('py', 'ts', 'yaml', 'md', 'go')[number % 5]}"
