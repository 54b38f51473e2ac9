"""`serve`."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.context import Options, pass_options
from appliance.cli.log_format import STDERR, LogFormatter, is_journal
from appliance.cli.output import print_line
from appliance.core.errors import GitmirrorError

if TYPE_CHECKING:
    from appliance.core.config.settings import Config


log = logging.getLogger(__name__)


@click.command()
@click.option(
    "--git",
    "git_addresses",
    multiple=True,
    metavar="ADDR",
    help='git:// address for guests: HOST:PORT, unix:/path or vsock:PORT; may be repeated. "" turns it off.',
)
@click.option(
    "--http", "http_addresses", multiple=True, metavar="ADDR", help="HTTP address for guests, in the same forms."
)
@click.option(
    "--admin",
    "admin_addresses",
    multiple=True,
    metavar="ADDR",
    help="HTTP address for operators, in the same forms. Guests must not reach it.",
)
@click.option("-v", "--verbose", is_flag=True, help="Also log debug messages.")
@pass_options
def serve(
    options: Options,
    git_addresses: tuple[str, ...],
    http_addresses: tuple[str, ...],
    admin_addresses: tuple[str, ...],
    verbose: bool,
) -> None:
    """Run the mirror in the foreground.

    Prints one line, `ready git://HOST:PORT ...`, once it accepts guests. On SIGTERM it lets running transfers
    finish and exits with code 0; on SIGHUP it reloads the configuration.

    \b
    Examples:
      gitmirror.pyz --state ./state serve --git 0.0.0.0:9418 --http "" --admin 127.0.0.1:9420
      gitmirror.pyz --state ./state serve --http 127.0.0.1:9419 --http unix:/run/gitmirror/http.sock
    """
    import asyncio

    from appliance.core.daemon.descriptor_store import DescriptorStore
    from appliance.core.daemon.service import Service, Start
    from appliance.core.daemon.systemd import Notifier, inherited_sockets, take_environment

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter.for_environment(os.environ))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    given = {"git": git_addresses, "http": http_addresses, "admin": admin_addresses}

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
        DescriptorStore.from_environment(environment),
        announce=print_line,
    )
    try:
        asyncio.run(Service(start).run())
    except GitmirrorError as error:
        if is_journal(os.environ, STDERR):
            # The error that follows on stderr has no priority, and `journalctl --priority err` must show why.
            log.critical("serve cannot go on: %s (%s)", error.message, error.hint)
        raise


def _overridden(config: Config, given: dict[str, tuple[str, ...]]) -> Config:
    from appliance.core.config.addresses import parse_listeners
    from appliance.core.errors import UsageError

    changes: dict[str, Any] = {}
    for name, texts in given.items():
        if texts:
            try:
                changes[name] = parse_listeners(texts[0] if len(texts) == 1 else texts)
            except ValueError as error:
                shown = texts[0] if len(texts) == 1 else list(texts)
                raise UsageError(f"--{name} is {shown!r}", hint=f"it must be {error}") from None
    return replace(config, serve=replace(config.serve, **changes))
