"""`logs`: the log of the service."""

from __future__ import annotations

import os
import signal
import sys

import click

from appliance.cli.context import Moment, Options, pass_options
from appliance.cli.paging import wants_pager

PRIORITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Keep printing new lines until Ctrl-C.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0),
    metavar="N",
    help="Show the last N lines. Default: 100, or all with --since.",
)
@click.option("--since", type=Moment(), help="Show only lines since WHEN: 2h (two hours ago), or 2026-11-26T08:00:00Z.")
@click.option(
    "-p",
    "--priority",
    type=click.Choice(PRIORITIES),
    metavar="P",
    help="Show only lines of this priority and above: err.",
)
@pass_options
@click.pass_context
def logs(
    ctx: click.Context, options: Options, follow: bool, lines: int | None, since: str | None, priority: str | None
) -> None:
    """Show the log of the installed service.

    Runs journalctl for gitmirror.service, and exits with its code. Root and members of the group systemd-journal may
    read the journal. A serve that systemd does not run logs to its stderr; this command then says where that goes, and
    exits with code 1.

    \b
    Examples:
      gitmirror.pyz logs --follow
      gitmirror.pyz logs --since 2h --priority warning
    """
    from appliance.core.config.settings import find_state
    from appliance.core.layout import Layout
    from appliance.core.ops.journal import journal_command

    layout = Layout(find_state(options.state, os.environ))
    argv = journal_command(layout, follow=follow, lines=lines, since=since, priority=priority)
    if not wants_pager(ctx):
        argv.append("--no-pager")
    sys.stdout.flush()
    # Python ignores it, and so would the journal, which then goes on when its reader has left.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execvp(argv[0], argv)
