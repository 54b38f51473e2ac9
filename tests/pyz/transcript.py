"""Runs a transcript: shell commands and what they must say, in a text that reads as documentation.

    # What comes next, for the reader.
    $ git clone $GIT/acme/widgets guest
    2> Cloning into 'guest'
    [1] $ git -C guest push origin main
    2> refused refs/heads/main

A line with `$` is run by sh in one directory, and must exit with the code in brackets, else with 0. Lines with `>` are
regular expressions of which each must be found in its stdout, those with `2>` in its stderr; `=` must be all of stdout.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.gitutil import run_process

_COMMAND = re.compile(r"(?:\[(\d+)\] )?\$ (.+)")


@dataclass
class Step:
    """One command, what it must exit with, and what it must say."""

    command: str
    code: int = 0
    out: list[str] = field(default_factory=list)
    error: list[str] = field(default_factory=list)
    exactly: str | None = None


def steps(text: str) -> Iterator[Step]:
    """The steps of a transcript. Raises ValueError for a line that is none of it."""
    step: Step | None = None
    for line in (line.strip() for line in text.splitlines()):
        if not line or line.startswith("#"):
            continue
        if found := _COMMAND.fullmatch(line):
            if step:
                yield step
            step = Step(found[2], int(found[1] or 0))
        elif step and line.startswith("> "):
            step.out.append(line[2:])
        elif step and line.startswith("2> "):
            step.error.append(line[3:])
        elif step and line.startswith("= "):
            step.exactly = line[2:]
        else:
            raise ValueError(f"not a line of a transcript: {line}")
    if step:
        yield step


def play(text: str, directory: Path, env: Mapping[str, str]) -> None:
    """Runs a transcript. Raises AssertionError at the first step that goes another way."""
    for step in steps(text):
        done = run_process(["sh", "-c", step.command], cwd=directory, env=env, timeout=120)
        out, error = done.stdout.decode(), done.stderr.decode()
        said = f"$ {step.command}\n{out}\n{error}\n(exit code {done.returncode})"
        assert done.returncode == step.code, said
        assert step.exactly is None or out.strip() == step.exactly, said
        for pattern, text_said in [*((each, out) for each in step.out), *((each, error) for each in step.error)]:
            assert re.search(pattern, text_said, re.MULTILINE), f"{pattern!r} is not in:\n{said}"
