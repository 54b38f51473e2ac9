"""The command group: the options that stand before the command, and the list of commands."""

from __future__ import annotations

import click

from appliance import version_text
from appliance.cli.activity import activity
from appliance.cli.api import api
from appliance.cli.api_tokens import api_token
from appliance.cli.audit import audit
from appliance.cli.backup import backup, restore
from appliance.cli.completion import completion
from appliance.cli.config import config_group
from appliance.cli.context import Options
from appliance.cli.demo import demo
from appliance.cli.disks import disk, disks
from appliance.cli.fleet import fleet
from appliance.cli.groups import SectionedGroup
from appliance.cli.guest import guest_kit
from appliance.cli.guests import guest, guests
from appliance.cli.install import install
from appliance.cli.integrity import heal, verify
from appliance.cli.logs import logs
from appliance.cli.output import choose_colour
from appliance.cli.paging import page
from appliance.cli.repos import add_repo, disable, enable, refresh, refreshes, remove_repo, repos
from appliance.cli.serve import serve
from appliance.cli.sessions import session, sessions
from appliance.cli.status import doctor, egress, status
from appliance.cli.storage import storage
from appliance.cli.tokens import token
from appliance.cli.tui import tui
from appliance.cli.uninstall import uninstall


def _print_licenses(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from appliance.core.ops.licenses import licenses, render_licenses

        click.echo(render_licenses(licenses()))
        ctx.exit()


@click.group(cls=SectionedGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--state", metavar="DIR", help="State directory. Default: $GITMIRROR_STATE, or /var/lib/gitmirror.")
@click.option(
    "--config",
    metavar="FILE",
    help="Configuration file. Default: $GITMIRROR_CONFIG, or /etc/gitmirror/gitmirror.toml.",
)
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    help="Colours: auto has them on a terminal, unless $NO_COLOR is set.",
)
@click.option("--no-pager", is_flag=True, help="Do not show long output in a pager: $GITMIRROR_PAGER, $PAGER, or less.")
@click.version_option(version_text(), message="%(version)s")
@click.option(
    "--licenses",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_licenses,
    help="List the packages inside gitmirror.pyz with their licences and exit.",
)
@click.pass_context
def cli(ctx: click.Context, state: str | None, config: str | None, color: str, no_pager: bool) -> None:
    """A hot git mirror on the node: keeps bare mirrors fresh, serves them to guests, and records what agents push.

    \b
    Examples:
      gitmirror.pyz serve
      gitmirror.pyz add-repo https://github.com/jomcgi/homelab
      git clone git://127.0.0.1:9418/jomcgi/homelab
      gitmirror.pyz status
    """
    ctx.obj = Options(state, config)
    choose_colour(ctx, color)


cli.add_section("Serve and install", serve, install, uninstall, logs, config_group, doctor)
cli.add_section("Watch the node", status, tui, demo, activity, storage, fleet)
cli.add_section("Repositories", add_repo, remove_repo, enable, disable, repos, refresh, refreshes)
cli.add_section("Guests", guest_kit, egress, guest, guests, token, disk, disks)
cli.add_section("What agents recorded", sessions, session, audit)
cli.add_section("Maintenance", verify, heal, backup, restore)
cli.add_section("Programs and shells", api, api_token, completion)

for command in (
    *(activity, audit, config_group.commands["show"], disks, guests, refreshes, repos, sessions, storage),
    *(session.commands[name] for name in ("diff", "log", "show")),
    *(token.commands["list"], api_token.commands["list"]),
):
    page(command)
