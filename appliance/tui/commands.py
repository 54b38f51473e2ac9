"""The commands that can be typed after `:`, those of the command line for which this view has a key or a screen.

One table has them all: what each takes, and what it does here.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from textual.app import App

from appliance.core.errors import GitmirrorError, UsageError
from appliance.core.models import Turn
from appliance.tui.context import Context, GoTo, OpenDiff, OpenRepository
from appliance.tui.data.messages import ReadFailed, SessionRead
from appliance.tui.data.rows import SessionRow
from appliance.tui.screens.dialogs import AddRepo
from appliance.tui.screens.repo_actions import RepoOrders
from appliance.tui.screens.session_actions import SessionOrders
from appliance.tui.screens.session_list import OF_GUEST

REPO, MAYBE, MANY = "REPO", "[REPO]", "[REPO]…"
"""Arguments that are names of registered repositories: one, at most one, and any number."""


@dataclass(frozen=True)
class Command:
    """A command: the end of the name of its method, its words, what it takes, and whether it needs a running serve."""

    does: str
    words: str
    takes: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    writes: bool = False

    @property
    def usage(self) -> str:
        """How it is typed."""
        return " ".join([self.words, *self.takes, *(f"[{option} …]" for option in self.options)])


TABLE = (
    Command("show_repos", "status"),
    Command("show_repos", "repos"),
    Command("show_sessions", "sessions", options=("--repo", "--guest", "--grep")),
    Command("show_activity", "activity", options=("--repo", "--guest")),
    Command("show_refreshes", "refreshes", (MAYBE,)),
    Command("show_pushes", "audit", options=("--repo", "--guest")),
    Command("show_guests", "guests"),
    Command("show_node", "doctor"),
    Command("show_node", "storage"),
    Command("refresh", "refresh", (MANY,), writes=True),
    Command("enable", "enable", (REPO,), writes=True),
    Command("disable", "disable", (REPO,), writes=True),
    Command("add", "add-repo", ("URL",), ("--name", "--branch", "--interval"), writes=True),
    Command("remove", "remove-repo", (REPO,), writes=True),
    Command("show_session", "session show", (REPO, "SESSION")),
    Command("show_session", "session diff", (REPO, "SESSION"), ("--turn",)),
    Command("check_out", "session checkout", (REPO, "SESSION", "DIR"), ("--turn",)),
    Command("keep", "session keep", (REPO, "SESSION"), writes=True),
    Command("drop", "session drop", (REPO, "SESSION"), writes=True),
    Command("help", "help"),
    Command("quit", "quit"),
)


class Commands:
    """Carries out and completes what is typed. `app` receives the messages that go to another view."""

    def __init__(self, context: Context, app: App[None]) -> None:
        self._context = context
        self._app = app
        self._orders = RepoOrders(context)
        self._session_orders = SessionOrders(context)

    def run(self, text: str) -> None:
        """Carries out a command, or shows what is wrong with it and what is right."""
        try:
            words = shlex.split(text)
            if len(words) == 1 and words[0] in self._context.model.repos:
                self._app.post_message(OpenRepository(words[0]))
                return
            command, rest = self._find(words)
            values, options = self._parse(command, rest)
            if command.writes and not self._context.model.serving:
                raise UsageError("serve is not running: nothing can be changed from here", hint="start it with `serve`")
            getattr(self, f"_{command.does}")(*values, **options)
        except GitmirrorError as error:
            self._context.say(f"{error.message}\n{error.hint or ''}".strip(), severity="warning")
        except ValueError as error:
            self._context.say(f"{text}: {error}", severity="warning")

    def complete(self, text: str) -> str | None:
        """Returns the line that `text` is the beginning of: a command, an option, or a repository."""
        if not text:
            return None
        command = max((each for each in TABLE if text.startswith(f"{each.words} ")), key=_length, default=None)
        repos = sorted(self._context.model.repos)
        if command is None:
            names = [f"{each.words}{' ' if each.takes else ''}" for each in sorted(TABLE, key=_length)]
            return next((name for name in (*names, *repos) if name.startswith(text) and name != text), None)
        before, _, last = text.rpartition(" ")
        if last.startswith("-"):
            choices: Sequence[str] = [f"{option} " for option in command.options]
        elif before.endswith(" --repo") or _place(command, before) in (REPO, MAYBE, MANY):
            choices = repos
        else:
            choices = ()
        found = next((choice for choice in choices if last and choice.startswith(last) and choice != last), None)
        return f"{before} {found}" if found else None

    # Parsing

    def _find(self, words: Sequence[str]) -> tuple[Command, list[str]]:
        for command in sorted(TABLE, key=_length, reverse=True):
            own = command.words.split()
            if list(words[: len(own)]) == own:
                return command, list(words[len(own) :])
        typed = " ".join(words[:2] if words[0] == "session" else words[:1])
        known = [each.words for each in TABLE]
        near = get_close_matches(typed, [*known, *self._context.model.repos], 1, 0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"there is: {', '.join(known)}"
        raise UsageError(f"there is no command `{typed}` here", hint=hint)

    def _parse(self, command: Command, rest: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        values: list[str] = []
        options: dict[str, str] = {}
        words = iter(rest)
        for word in words:
            name, is_set, value = word.partition("=")
            if not word.startswith("--"):
                values.append(word)
            elif name not in command.options:
                near = get_close_matches(name, command.options, 1, 0.5)
                raise UsageError(
                    f"`{command.words}` has no option {name} here",
                    hint=f"did you mean {near[0]}?" if near else f"type: {command.usage}",
                )
            else:
                options[name.removeprefix("--")] = value if is_set else next(words, "")
        takes = command.takes
        if takes == (MANY,) or (takes == (MAYBE,) and not values):
            takes = (REPO,) * len(values)
        if len(values) != len(takes):
            said = " ".join(takes) or "nothing more"
            raise UsageError(f"`{command.words}` takes {said}", hint=f"type: {command.usage}")
        named = [value for value, take in zip(values, takes, strict=True) if take in (REPO, MAYBE)]
        for name in [*named, *([options["repo"]] if "repo" in options else [])]:
            self._check(name)
        return values, options

    def _check(self, name: str) -> None:
        """Raises UsageError with the nearest name unless a repository has this one."""
        repos = list(self._context.model.repos)
        if name not in repos:
            ends = [repo for repo in repos if repo.rpartition("/")[2] == name]
            near = ends or get_close_matches(name, repos, 1, 0.5)
            raise UsageError(
                f"{name} is not registered", hint=f"did you mean {near[0]}?" if near else "`status` lists them"
            )

    # Going somewhere

    def _go(self, mode: str, *words: str | None) -> None:
        self._app.post_message(GoTo(mode, " ".join(filter(None, words))))

    def _show_repos(self) -> None:
        self._go("repositories")

    def _show_sessions(self, repo: str = "", guest: str = "", grep: str = "") -> None:
        self._go("sessions", repo, f"{OF_GUEST}{guest}" if guest else "", grep)

    def _show_activity(self, repo: str = "", guest: str = "") -> None:
        self._go("activity", repo, guest)

    def _show_refreshes(self, repo: str = "") -> None:
        self._go("activity", "refresh", repo)

    def _show_pushes(self, repo: str = "", guest: str = "") -> None:
        self._go("activity", "push", repo, guest)

    def _show_guests(self) -> None:
        self._go("guests")

    def _show_node(self) -> None:
        self._app.post_message(GoTo("node"))

    def _help(self) -> None:
        self._app.call_later(self._app.run_action, "help")

    def _quit(self) -> None:
        self._app.exit()

    # Repositories

    def _refresh(self, *names: str) -> None:
        self._orders.refresh(list(names))

    def _enable(self, name: str) -> None:
        self._orders.enable(name)

    def _disable(self, name: str) -> None:
        self._orders.disable(name)

    def _add(self, url: str, name: str = "", branch: str = "", interval: str = "") -> None:
        self._orders.add(AddRepo.arguments({"url": url, "name": name, "branch": branch, "interval": interval}))

    def _remove(self, name: str) -> None:
        self._orders.remove(self._context.model.repos[name])

    # Sessions

    def _with_session(self, repo: str, name: str, then: Callable[[SessionRow], None]) -> None:
        """Reads the session and goes on with it, or says that there is none."""
        queries = self._context.queries

        def go_on(session: SessionRow | None, turns: list[Turn]) -> None:
            if session is not None:
                then(session)
            else:
                said = f"{repo} has no session {name}\n`sessions --repo {repo}` lists those that it has"
                self._context.say(said, severity="warning")

        def work() -> SessionRead:
            row = queries.session(repo, name)
            return SessionRead(SessionRow.of(row) if row else None, [], go_on)

        self._context.loader.read("session", self._app, work, failed=self._failed)

    def _failed(self, message: ReadFailed) -> None:
        self._context.say(f"{message.error.message}\n{message.error.hint or ''}".strip(), severity="error")

    def _show_session(self, repo: str, name: str, turn: str = "") -> None:
        number = _number(turn)

        def show(session: SessionRow) -> None:
            self._app.post_message(OpenDiff(session, number))

        self._with_session(repo, name, show)

    def _check_out(self, repo: str, name: str, directory: str, turn: str = "") -> None:
        self._session_orders.check_out(repo, name, directory, _number(turn))

    def _keep(self, repo: str, name: str) -> None:
        self._session_orders.keep(repo, name, kept=True)

    def _drop(self, repo: str, name: str) -> None:
        self._with_session(repo, name, self._session_orders.drop)


def _length(command: Command) -> int:
    return len(command.words)


def _place(command: Command, before: str) -> str:
    """Returns what the word after `before` is, empty if the command takes no more."""
    given = len(before.split()) - len(command.words.split())
    if command.takes == (MANY,):
        return MANY
    return command.takes[given] if 0 <= given < len(command.takes) else ""


def _number(turn: str) -> int | None:
    """Reads the number of a turn. Raises UsageError."""
    if not turn:
        return None
    if not turn.isdecimal() or not int(turn):
        raise UsageError(f"--turn {turn} is no turn", hint="turns count from 1")
    return int(turn)
