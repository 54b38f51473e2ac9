"""`api`: one request to the API of the running `serve`."""

from __future__ import annotations

import sys
from typing import IO

import click

from appliance.cli.context import Options, pass_options
from appliance.cli.output import say


@click.command()
@click.argument("method", metavar="METHOD")
@click.argument("path", metavar="PATH")
@click.option("--input", "body", type=click.File("rb"), metavar="FILE", help="The body of the request; - is stdin.")
@click.option("--accept", metavar="TYPE", default="*/*", help="The media type to ask for, such as text/x-diff.")
@pass_options
def api(options: Options, method: str, path: str, body: IO[bytes] | None, accept: str) -> None:
    """Send one request to the API of the running serve and print the response.

    PATH begins with /v1 and may have a query. The exit code is 0 for a status below 400, and 1 otherwise. No token is
    needed, because who may open the control socket is an operator.

    \b
    Examples:
      gitmirror.pyz api GET /v1/openapi.json
      gitmirror.pyz api GET '/v1/sessions?path=README.md'
      echo '{"url": "https://github.com/acme/widgets"}' | gitmirror.pyz api POST /v1/repos --input -
      gitmirror.pyz api GET /v1/events
    """
    from appliance.core.api.client import send
    from appliance.core.errors import UsageError

    if not path.startswith("/v1"):
        raise UsageError(f"{path} is no path of the API", hint="it begins with /v1: try /v1/openapi.json")
    status, pieces = send(options.node().layout, method.upper(), path, body.read() if body else None, accept)
    for piece in pieces:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    if status >= 400:
        say(f"status {status}")
        raise SystemExit(1)
