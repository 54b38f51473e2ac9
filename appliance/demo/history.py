"""The commits of an upstream as a stream for `git fast-import`: first its past, later one commit after the other.

The same seed gives the same trees, authors and messages. Dates count from now, because the demo should not look old.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from appliance.demo.content import Knob, Project

AUTHORS = (
    "Ada Moreau <ada@example.com>",
    "Björn Lindqvist <bjorn@example.com>",
    "Chen Wei <chen@example.com>",
    "Fatima Haddad <fatima@example.com>",
)
ROUNDS = 4
"""How often each knob was turned in the past of a repository."""
LONGEST_GAP = 60 * 3600
"""Seconds between two commits of the past, at most."""
PICTURE = 150 * 1024
"""Bytes of each large file."""
_VERBS = ("open", "find", "check", "close", "list")
_REASONS = ("that was asked for", "as it is now", "or says why not", "before anything is changed", "in one step")


class ProjectHistory:
    """The history of one repository: makes its past once, then its commits."""

    def __init__(self, project: Project, seed: int) -> None:
        self.project = project
        self._random = random.Random(f"{seed} {project.name}")
        self._values = {knob.name: knob.values[-1] for knob in project.knobs}
        self._turned = 0

    def past(self, now: float) -> bytes:
        """The stream of everything up to a few minutes before `now`: a main branch, a branch and two tags."""
        steps = self._steps()
        gaps = [self._random.uniform(600, LONGEST_GAP) for _ in steps]
        clock = now - sum(gaps) - self._random.uniform(60, 900)
        releases = (len(steps) // 2, len(steps) - 3)
        parts = []
        for number, (message, files) in enumerate(steps):
            clock += gaps[number]
            parts.append(self._commit("main", message, files, clock))
            if number in releases:
                parts.append(f"reset refs/tags/v1.{releases.index(number)}\nfrom refs/heads/main\n\n".encode())
        parts.append(b"reset refs/heads/next\nfrom refs/heads/main\n\n")
        knob = self.project.knobs[0]
        trial = {self.project.settings: self._settings({**self._values, knob.name: knob.values[0] * 2})}
        parts.append(
            self._commit("next", f"Try twice as much: {knob.message.format(knob.values[0] * 2)}", trial, clock)
        )
        return b"".join(parts)

    def next(self, now: float) -> bytes:
        """The stream of the next commit on main, which turns the next knob."""
        message, files = self._turn()
        return self._commit("main", message, files, now, start="from refs/heads/main^0\n")

    def _steps(self) -> list[tuple[str, dict[str, bytes]]]:
        project = self.project
        readme = f"# {project.package.capitalize()}\n\n{project.about}.\n\nRun the tests with `make test`.\n"
        first = {
            "README.md": readme.encode(),
            "Makefile": b"test:\n\tpython -m pytest tests\n",
            f"{project.package}/__init__.py": f'"""{project.about}."""\n'.encode(),
            project.settings: self._settings(self._values),
            **{path: text.encode() for path, text in project.files.items()},
        }
        steps = [("Start", first)]
        for part in project.parts:
            steps.append((f"Add {part}", {f"{project.package}/{part}.py": self._module(part)}))
            steps.append((f"Test {part}", {f"tests/test_{part}.py": self._tests(part)}))
        for number in range(project.pictures):
            data = b"\xff\xd8\xff\xe0" + self._random.randbytes(PICTURE)
            steps.append((f"A new picture for the start page ({number + 1})", {f"static/start-{number + 1}.jpg": data}))
        steps += [self._turn() for _ in range(ROUNDS * len(project.knobs))]
        return steps

    def _turn(self) -> tuple[str, dict[str, bytes]]:
        knobs = self.project.knobs
        knob: Knob = knobs[self._turned % len(knobs)]
        value = knob.values[self._turned // len(knobs) % len(knob.values)]
        self._turned += 1
        self._values[knob.name] = value
        return knob.message.format(value), {self.project.settings: self._settings(self._values)}

    def _settings(self, values: Mapping[str, int]) -> bytes:
        lines = [f'"""The settings of {self.project.package}."""', ""]
        lines += [f"{name} = {value}" for name, value in values.items()]
        return ("\n".join(lines) + "\n").encode()

    def _module(self, part: str) -> bytes:
        one = part.rstrip("s")
        lines = [f'"""{self.project.about}: {part}."""', "", f"from {self.project.package} import settings", ""]
        for verb in _VERBS[: self._random.randint(3, len(_VERBS))]:
            lines += [
                "",
                f"def {verb}_{one}(store, key, *, by=None):",
                f'    """{verb.capitalize()}s the {one} {self._random.choice(_REASONS)}."""',
                f"    {one} = store.get({part!r}, key)",
                f"    if {one} is None:",
                f'        raise LookupError(f"no {one} {{key}}")',
                f"    store.note({verb!r}, {one}, by=by, settings=vars(settings))",
                f"    return {one}",
                "",
            ]
        return ("\n".join(lines).rstrip() + "\n").encode()

    def _tests(self, part: str) -> bytes:
        one = part.rstrip("s")
        lines = [f"import pytest\n\nfrom {self.project.package} import {part}\n\n"]
        lines += [f"def test_unknown_{one}(store):\n    with pytest.raises(LookupError):"]
        lines += [f'        {part}.open_{one}(store, "nobody")\n']
        return "\n".join(lines).encode()

    def _commit(self, branch: str, message: str, files: Mapping[str, bytes], when: float, *, start: str = "") -> bytes:
        who = f"{self._random.choice(AUTHORS)} {int(when)} +0000"
        parts = [f"commit refs/heads/{branch}\nauthor {who}\ncommitter {who}\n".encode(), _data(message.encode())]
        parts.append(start.encode())
        for path, content in files.items():
            parts.append(f"M 100644 inline {path}\n".encode() + _data(content))
        return b"".join([*parts, b"\n"])


def _data(content: bytes) -> bytes:
    return b"data %d\n%s\n" % (len(content), content)
