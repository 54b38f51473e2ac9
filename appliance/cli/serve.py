"""`serve`."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.context import Options, pass_options
from appliance.cli.log_format import LogFormatter
from appliance.cli.output import print_line

if TYPE_CHECKING:
    from appliance.core.config.settings import Config


@click.command()
@click.option("--git", "git_address", metavar="ADDR", help='git:// address for guests, HOST:PORT; "" turns it off.')
@click.option("--http", "http_address", metavar="ADDR", help='HTTP address for guests, HOST:PORT; "" turns it off.')
@click.option(
    "--admin",
    "admin_address",
    metavar="ADDR",
    help='HTTP address for operators, HOST:PORT; "" turns it off. Guests must not reach it.',
)
@click.option("-v", "--verbose", is_flag=True, help="Log debug messages too.")
@pass_options
def serve(
    options: Options,
    git_address: str | None,
    http_address: str | None,
    admin_address: str | None,
    verbose: bool,
) -> None:
    """Run the mirror in the foreground.

    Prints one line, `ready git://HOST:PORT ...`, once it accepts guests. On SIGTERM it lets running transfers
    finish and exits with code 0; on SIGHUP it reloads the configuration.

    \b
    Example:
      gitmirror.pyz --state ./state serve --git 0.0.0.0:9418 --http "" --admin 127.0.0.1:9420
    """
    import asyncio

    from appliance.core.daemon.service import Service, Start
    from appliance.core.daemon.systemd import Notifier, inherited_sockets, take_environment

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter.for_environment(os.environ))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    given = {"git": git_address, "http": http_address, "admin": admin_address}

    def load() -> Config:
        return _overridden(options.load_config(), given)

    from appliance.core.config.settings import find_state
    from appliance.core.layout import Layout
    from appliance.core.process.owner import become_owner_of

    state = find_state(options.state, os.environ)
    environment = take_environment(os.environ)
    sockets = inherited_sockets(environment, os.getpid())
    become_owner_of(state)
    os.umask(0o027)
    start = Start(
        Layout(state),
        load,
        Notifier.from_environment(environment),
        sockets,
        announce=print_line,
    )
    asyncio.run(Service(start).run())


def _overridden(config: Config, given: dict[str, str | None]) -> Config:
    from appliance.core.errors import UsageError
    from appliance.core.units import parse_address

    changes: dict[str, Any] = {}
    for name, text in given.items():
        if text is not None:
            try:
                changes[name] = parse_address(text)
            except ValueError as error:
                raise UsageError(f"--{name} is {text!r}", hint=f"it must be {error}") from None
    return replace(config, serve=replace(config.serve, **changes))
