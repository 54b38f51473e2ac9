"""What can be done to a repository, from the list of repositories, from the view of one, and by a typed command."""

from __future__ import annotations

from typing import Any

from textual.binding import Binding, BindingType

from appliance.core.config.addresses import tcp_url
from appliance.core.errors import GitmirrorError
from appliance.core.node.queries import RepoView
from appliance.tui.context import Context
from appliance.tui.data.activity import moved_words
from appliance.tui.screens.dialogs import CANCEL, AddRepo, Ask
from appliance.tui.screens.view import View
from appliance.tui.text import count

REPO_KEYS: list[BindingType] = [
    Binding("r", "refresh", "refresh", tooltip="refresh it now"),
    Binding("a", "add", "add", tooltip="add a repository"),
    Binding("y", "copy_clone", "copy clone line", tooltip="copy the line that clones it"),
    Binding("d", "switch", "disable", tooltip="disable it, after asking, or enable it again"),
    Binding("D", "remove", "remove", tooltip="remove it, after asking"),
    Binding("R", "refresh_all", "refresh all", show=False, tooltip="refresh every repository now"),
]


class RepoOrders:
    """Orders about repositories, which the running serve carries out; what cannot be undone asks first."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._node = context.node

    @property
    def _it(self) -> str:
        """What a question is about: in a fleet, a change of the registry holds on every node."""
        return "On every node of the fleet, it" if (self._context.model.pulse or {}).get("fleet") else "It"

    def disable(self, name: str) -> None:
        """Disables the repository after asking for confirmation."""

        def disable(answer: str | None) -> None:
            if answer and answer != CANCEL:
                self._switch(name, enabled=False)

        self._context.ask(
            Ask(
                f"Disable {name}?",
                f"{self._it} is no longer refreshed or served, so guests get it from the upstream. Nothing is deleted, "
                "and the same key enables it again.",
                [("disable", "Disable")],
            ),
            disable,
        )

    def enable(self, name: str) -> None:
        """Enables the repository again."""
        self._switch(name, enabled=True)

    def _switch(self, name: str, *, enabled: bool) -> None:
        node = self._node

        def work() -> str:
            node.current().change(name, {"enabled": enabled})
            return f"{name} is {'enabled' if enabled else 'disabled; nothing was deleted'}"

        self._context.act(f"{'enable' if enabled else 'disable'} {name}", work)

    def add(self, arguments: dict[str, Any]) -> None:
        """Registers a repository, and does not wait for its first clone."""
        node = self._node

        def work() -> str:
            added = node.current().add(arguments)
            return f"{added['name']} is registered ({added['state']})"

        self._context.act(f"add {arguments['url']}", work)

    def remove(self, view: RepoView) -> None:
        """Unregisters the repository after asking for confirmation."""
        name, sessions, node = view.repo.name, view.health.sessions, self._node

        def remove(answer: str | None) -> None:
            if not answer or answer == CANCEL:
                return

            def work() -> str:
                node.current().remove(name, purge=answer == "purge")
                return f"{name} is removed{' and its mirror deleted' if answer == 'purge' else '; its mirror stays'}"

            self._context.act(f"remove {name}", work)

        recorded = f", with the {count(sessions, 'session')} recorded in it" if sessions else ""
        if view.leases:
            recorded += f". Deleting also removes its disks and ends {count(view.leases, 'lease')} of them"
        self._context.ask(
            Ask(
                f"Remove {name}?",
                f"{self._it} is no longer refreshed or served. Its mirror stays on disk unless you delete it too"
                f"{recorded}.",
                [("remove", "Remove"), ("purge", "Remove and delete")],
            ),
            remove,
        )

    def refresh(self, names: list[str]) -> None:
        """Refreshes the named repositories, or all of them for an empty list, and says what moved."""
        node = self._node

        def work() -> str:
            outcomes = node.current().refresh(names)
            failed = [outcome for outcome in outcomes if outcome["error"]]
            if failed:
                raise GitmirrorError(f"{failed[0]['repo']}: {failed[0]['error']}")
            moved = [outcome for outcome in outcomes if outcome["moved"]]
            if len(outcomes) == 1:
                said = moved_words(outcomes[0]["moved"]) if moved else "nothing moved"
                return f"{outcomes[0]['repo']}: {said}"
            return f"{count(len(outcomes), 'repository', 'repositories')} refreshed, {len(moved)} moved"

        self._context.act(f"refresh {names[0] if len(names) == 1 else 'all'}", work)


class RepoActions(View):
    """The actions on `chosen`."""

    @property
    def chosen(self) -> RepoView | None:
        """The repository that keys act on."""
        raise NotImplementedError

    @property
    def _orders_of_repos(self) -> RepoOrders:
        return RepoOrders(self.context)

    def named(self, binding: Binding) -> str:
        """The word for what the key would do now: a disabled repository can be enabled."""
        is_off = self.chosen is not None and not self.chosen.repo.enabled
        return "enable" if binding.action == "switch" and is_off else super().named(binding)

    def action_refresh(self) -> None:
        """Refreshes the chosen repository now."""
        if (view := self.chosen) and self.may_write():
            self._orders_of_repos.refresh([view.repo.name])

    def action_refresh_all(self) -> None:
        """Refreshes every repository now."""
        if self.may_write():
            self._orders_of_repos.refresh([])

    def action_switch(self) -> None:
        """Disables the repository after asking for confirmation, or enables it again."""
        if (view := self.chosen) and self.may_write():
            orders = self._orders_of_repos
            (orders.disable if view.repo.enabled else orders.enable)(view.repo.name)

    def action_add(self) -> None:
        """Asks for a URL and registers the repository."""
        if not self.may_write():
            return

        def add(entered: dict[str, str] | None) -> None:
            if entered:
                self._orders_of_repos.add(AddRepo.arguments(entered))

        self.context.ask(AddRepo(), add)

    def action_remove(self) -> None:
        """Unregisters the repository after asking for confirmation."""
        if (view := self.chosen) and self.may_write():
            self._orders_of_repos.remove(view)

    def action_copy_clone(self) -> None:
        """Copies the command by which a guest clones it."""
        if view := self.chosen:
            self.context.copy(self.clone_line(view.repo.name))

    def clone_line(self, name: str) -> str:
        """Returns the command by which a guest clones it; git:// is preferred because it costs less."""
        serve = self.context.node.config.serve
        pulse = self.model.pulse or {
            "git": serve.public_git or tcp_url(serve.git, "git"),
            "http": serve.public_http or tcp_url(serve.http, "http"),
        }
        # A listener on a unix socket or vsock alone has no URL that git takes.
        urls = [url for url in (pulse["git"], pulse["http"]) if url and "://" in url]
        return f"git clone {urls[0] if urls else ''}/{name}"
