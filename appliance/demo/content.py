"""What the demo is about: repositories, what changes in them, and what agents do there. Read from `content/*.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Knob:
    """A constant of a repository's settings. Upstream commits set it to the next of `values`; `{}` is the value."""

    name: str
    values: tuple[int, ...]
    message: str


@dataclass(frozen=True)
class Edit:
    """A change of one file: `old` becomes `new`; without `old`, `new` is the whole file, or added at its end."""

    path: str
    new: str
    old: str = ""
    at_end: bool = False

    def apply(self, text: str) -> str:
        """The file after the change. Raises ValueError if it does not have `old` exactly once."""
        if self.at_end:
            return text + self.new
        if not self.old:
            return self.new
        if text.count(self.old) != 1:
            raise ValueError(f"{self.path} has {text.count(self.old)} times {self.old!r}")
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class TurnPlan:
    """What an agent does in one turn: its edits, the message of the commit, and what the agent said."""

    message: str
    said: str
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class SessionPlan:
    """What an agent does in one session, and the task that it was given."""

    name: str
    model: str
    task: str
    turns: tuple[TurnPlan, ...]


@dataclass(frozen=True)
class Project:
    """One repository. `parts` are its generated modules, `pictures` the number of its large files.

    The upstream of a flaky one is often down.
    """

    name: str
    about: str
    package: str
    parts: tuple[str, ...]
    knobs: tuple[Knob, ...]
    files: Mapping[str, str]
    session: SessionPlan | None = None
    pictures: int = 0
    is_flaky: bool = False

    @property
    def settings(self) -> str:
        """The path of the file with the knobs."""
        return f"{self.package}/settings.py"


def read_projects() -> list[Project]:
    """Every repository of the demo, by name."""
    files = resources.files("appliance.demo").joinpath("content").iterdir()
    texts = [file.read_text(encoding="utf-8") for file in files if file.name.endswith(".toml")]
    return sorted((_project(tomllib.loads(text)) for text in texts), key=lambda project: project.name)


def _project(given: dict[str, Any]) -> Project:
    knobs = tuple(Knob(each["name"], tuple(each["values"]), each["message"]) for each in given.pop("knobs"))
    session = given.pop("session", None)
    parts = tuple(given.pop("parts"))
    return Project(**given, parts=parts, knobs=knobs, session=_session(session) if session else None)


def _session(given: dict[str, Any]) -> SessionPlan:
    turns = tuple(
        TurnPlan(turn["message"], turn["said"], tuple(Edit(**edit) for edit in turn["edits"]))
        for turn in given["turns"]
    )
    return SessionPlan(given["name"], given["model"], given["task"], turns)
