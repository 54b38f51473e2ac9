"""The audit log of pushes: `audit`, `audit verify`, `audit export`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.context import Moment, Options, json_option, pass_options
from appliance.cli.output import print_cells, print_json, print_json_line, print_line, print_table, say

if TYPE_CHECKING:
    from appliance.core.store.audit import AuditLog

BROKEN = 3
MOST_NAMED = 20
POLL = 0.5
HEADERS = ("ID", "AT", "REPOSITORY", "REF", "COMMIT", "VERDICT", "OUTCOME", "CLIENT", "GUEST", "REASON")


@click.group(invoke_without_command=True)
@click.option("--repo", metavar="R", help="Show only this repository.")
@click.option("--session", metavar="S", help="Show only this session.")
@click.option("--verdict", type=click.Choice(["accepted", "rejected"]), help="Show only attempts with this verdict.")
@click.option(
    "--since", type=Moment(), help="Show only attempts since WHEN: 2h (two hours ago), or 2026-11-26T08:00:00Z."
)
@click.option("--guest", metavar="NAME", help="Show only attempts of this known guest.")
@click.option(
    "--limit", metavar="N", type=click.IntRange(1), default=50, show_default=True, help="Show at most this many rows."
)
@click.option(
    "--follow", is_flag=True, help="Keep printing new rows, one a line, until Ctrl-C; with --json, as JSON lines."
)
@json_option
@pass_options
@click.pass_context
def audit(
    ctx: click.Context,
    options: Options,
    repo: str | None,
    session: str | None,
    verdict: str | None,
    since: str | None,
    guest: str | None,
    limit: int,
    follow: bool,
    as_json: bool,
) -> None:
    """List every push attempt, newest first.

    There is one row for each ref that a guest tried to write, whether it was accepted or rejected.

    \b
    Examples:
      gitmirror.pyz audit --repo jomcgi/homelab --verdict rejected --since 2h
      gitmirror.pyz audit --follow
      gitmirror.pyz audit verify
      gitmirror.pyz audit export > audit.jsonl
    """
    if ctx.invoked_subcommand is not None:
        return
    node = options.node()
    log = node.stores().audit
    wanted: dict[str, Any] = {"repo": repo, "session": session, "verdict": verdict, "since": since, "guest": guest}
    found = log.entries(**wanted, limit=limit)
    node.expect(repo, found)
    if follow:
        _follow(log, wanted, found, as_json)
    elif as_json:
        print_json(found)
    else:
        print_table(HEADERS, [_row(entry) for entry in found], right=("ID",))


def _follow(log: AuditLog, wanted: dict[str, Any], found: list[dict[str, Any]], as_json: bool) -> None:
    """Prints a row only once its outcome is known, so that no printed line turns out to be wrong."""
    last = found[-1]["id"] - 1 if found else 0
    try:
        while True:
            for entry in reversed(found):
                if entry["outcome"] == "pending":
                    break
                last = entry["id"]
                if as_json:
                    print_json_line(entry)
                else:
                    print_cells(_row(entry))
            time.sleep(POLL)
            found = log.entries(**wanted, above=last)
    except KeyboardInterrupt:
        return


def _row(entry: dict[str, Any]) -> tuple[Any, ...]:
    commit = (entry["new"] or "")[:12]
    who = (entry["client"], entry["guest"], entry["reason"])
    return (entry["id"], entry["at"], entry["repo"], entry["ref"], commit, entry["verdict"], entry["outcome"], *who)


@audit.command()
@click.option("--head", metavar="HASH", help="Fail unless the log still contains this head, which you noted earlier.")
@click.option("--fleet", is_flag=True, help="Also fail unless the log contains every head that the fleet has of it.")
@json_option
@pass_options
def verify(options: Options, head: str | None, fleet: bool, as_json: bool) -> None:
    """Verify the hash chain of the audit log.

    Exits with code 3 if the chain is broken, and names the first event that breaks it; also if the log lacks events
    that it once had, or turns that are in the mirrors. With --fleet, compares the log with the heads that this node
    published in its fleet. Nobody can take those back, so this also finds a log that was cut off, rewritten or
    replaced by an older one, even when the whole disk was replaced.

    \b
    Examples:
      gitmirror.pyz audit verify --head "$(cat pinned-head)"
      gitmirror.pyz audit verify --fleet
    """
    from appliance.cli import fleet_audit

    node = options.node()
    stores = node.stores()
    verdict = stores.audit.verify(head)
    unknown = node.unknown_turns() if verdict.broken is None else []
    published = fleet_audit.look(node.config, stores) if fleet else None
    if as_json:
        turns = [turn._asdict() for turn in unknown]
        document = {**vars(verdict), "unknown": turns, "fleet": published.document() if published else None}
        print_json(document)
    elif verdict.broken is not None:
        say(f"the audit log is broken at event {verdict.broken}: {verdict.reason}")
    elif unknown:
        for turn in unknown[:MOST_NAMED]:
            say(f"{turn.repo}: turn {turn.id}, {turn.commit}, is in the mirror but not in the log")
        say(f"{len(unknown)} turns in mirrors are not in the log; the next start of serve records them")
    else:
        print_line(f"{verdict.events} events, the chain holds; head {verdict.head}")
    if published is not None and not as_json:
        published.print()
    if verdict.broken is not None or unknown or (published and published.is_bad):
        sys.exit(BROKEN)
    if published is not None and published.trouble is not None:
        raise published.trouble


@audit.command("accept-loss")
@json_option
@pass_options
def accept_loss(options: Options, as_json: bool) -> None:
    """Accept pushes again after the audit log lost events.

    Pushes are refused when the database was lost or is an older copy. Use this when there is no newer copy of
    gitmirror.db. It adds a note to the log. Turns that are in the mirrors but
    not in the log are recorded again. In a fleet, it also notes which events were published in the fleet and are lost,
    so that `audit verify --fleet` accepts that.

    \b
    Example:
      gitmirror.pyz audit accept-loss
    """
    from appliance.cli import fleet_audit

    node = options.node(create=True)
    done = node.current().accept_loss()
    published = fleet_audit.accept(node.config, node.stores()) if node.config.fleet.is_on else None
    if as_json:
        print_json({**done, "fleet": published.document()} if published else done)
        return
    if done["accepted"]:
        print_line(
            f"the loss is noted in the log and pushes are accepted again; turns found in mirrors: {done['found']}"
        )
    elif not (published and published.lost):
        print_line(f"the log lacks no events; turns found in mirrors: {done['found']}")
    if published is not None:
        published.print_accepted()


@audit.command()
@click.option(
    "--since", type=Moment(), help="Print only events since WHEN: 2h (two hours ago), or 2026-11-26T08:00:00Z."
)
@pass_options
def export(options: Options, since: str | None) -> None:
    """Print the whole audit log as JSON lines.

    Prints the oldest event first, and each event with its hash.

    \b
    Example:
      gitmirror.pyz audit export --since 7d | gzip > audit.jsonl.gz
    """
    for event in options.node().stores().audit.events(since):
        print_json_line(event)
