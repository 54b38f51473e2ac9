"""What can be done to several marked repositories at once, after one question that names how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from textual.binding import Binding

from appliance.core.errors import GitmirrorError
from appliance.core.node.queries import RepoView
from appliance.tui.context import Context
from appliance.tui.data.batch import Batch, Order
from appliance.tui.screens.dialogs import CANCEL, Ask
from appliance.tui.screens.marking import ListMarking
from appliance.tui.screens.repo_actions import RepoActions
from appliance.tui.text import count, size
from appliance.tui.widgets.listing import Listing


class RepoBatches(RepoActions, ListMarking):
    """The actions on the marked repositories of `listing`; without marks, on the one under the cursor."""

    def __init__(self, context: Context) -> None:
        super().__init__(context, lambda view: view.repo.name)

    @property
    def listing(self) -> Listing[RepoView]:
        """The list of repositories."""
        raise NotImplementedError

    @property
    def marked(self) -> Sequence[RepoView]:
        """The marked repositories, in the order in which they were."""
        return [self.model.repos[str(key)] for key in self.marks.keys if key in self.model.repos]

    def named(self, binding: Binding) -> str:
        """The word for what the key would do now, to the marked ones if there are any."""
        if binding.action == "switch" and (marked := self.marked):
            return "disable" if any(view.repo.enabled for view in marked) else "enable"
        return super().named(binding)

    def action_refresh(self) -> None:
        """Refreshes the marked repositories now."""
        views, node = self.marked, self.context.node
        if not views:
            super().action_refresh()
        elif self.may_write():
            names = [view.repo.name for view in views]
            self.act_together(len(names), lambda: _refreshed(node.current().refresh(names)), "refreshed", _said)

    def action_switch(self) -> None:
        """Disables those of the marked repositories that are enabled; when none is, enables them all."""
        views, node = self.marked, self.context.node
        if not views:
            super().action_switch()
            return
        if not self.may_write():
            return
        enabled = not any(view.repo.enabled for view in views)
        chosen = [view for view in views if view.repo.enabled != enabled]
        change = {"enabled": enabled}
        orders = [
            Order(view.repo.name, view.repo.name, partial(node.current().change, view.repo.name, change))
            for view in chosen
        ]
        text = (
            "They are refreshed and served again."
            if enabled
            else "They are no longer refreshed or served, so guests get them from the upstream. Nothing is deleted."
        )
        word = "enabled" if enabled else "disabled"
        verb = "Enable" if enabled else "Disable"
        self.ask_about_all(f"{verb} {_count(len(chosen))}?", f"{self._holds}{text}", verb, orders, word, _said)

    def action_remove(self) -> None:
        """Unregisters the marked repositories."""
        views, node = self.marked, self.context.node
        if not views:
            super().action_remove()
            return
        if not self.may_write():
            return

        def answered(answer: str | None) -> None:
            if not answer or answer == CANCEL:
                return
            purge = answer == "purge"
            orders = [
                Order(view.repo.name, view.repo.name, partial(node.current().remove, view.repo.name, purge=purge))
                for view in views
            ]
            self.act_on_all(orders, "removed", _said)

        sessions, leases = sum(view.health.sessions for view in views), sum(view.leases for view in views)
        total = f"{size(sum(view.health.size for view in views))}, with {count(sessions, 'session')}"
        ends = f", and ends {count(leases, 'lease')} of disks" if leases else ""
        text = (
            f"{self._holds}They are no longer refreshed or served. Their mirrors stay on disk unless you delete them "
            f"too, which removes {total}{ends}."
        )
        answers = [("remove", "Remove"), ("purge", "Remove and delete")]
        self.context.ask(Ask(f"Remove {_count(len(views))}?", text, answers), answered)

    @property
    def _holds(self) -> str:
        """Says of a fleet that a change of the registry holds on every node."""
        return "This holds on every node of the fleet. " if (self.model.pulse or {}).get("fleet") else ""


def _refreshed(outcomes: Sequence[dict[str, Any]]) -> Batch:
    failed = [(outcome["repo"], GitmirrorError(outcome["error"])) for outcome in outcomes if outcome["error"]]
    return Batch(tuple(outcome["repo"] for outcome in outcomes if not outcome["error"]), tuple(failed))


def _count(number: int) -> str:
    return count(number, "repository", "repositories")


def _said(word: str, number: int) -> str:
    return f"{_count(number)} {'is' if number == 1 else 'are'} {word}"
