"""`api`: one request to the API of the running `serve`."""

from __future__ import annotations

import sys
from typing import IO
from urllib.parse import quote

import click

from appliance.cli.context import Options, pass_options
from appliance.cli.output import say

METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE")
UNQUOTED = "/?&=%:@+,;~!$'()*[]"
"""What stands for itself in a path with a query. Spaces and other letters are escaped, as a browser does."""


@click.command()
@click.argument("method", metavar="METHOD", type=click.Choice(METHODS, case_sensitive=False))
@click.argument("path", metavar="PATH")
@click.option("--input", "body", type=click.File("rb"), metavar="FILE", help="The body of the request; - is stdin.")
@click.option("--accept", metavar="TYPE", default="*/*", help="The media type to ask for, such as text/x-diff.")
@pass_options
def api(options: Options, method: str, path: str, body: IO[bytes] | None, accept: str) -> None:
    """Send one request to the API of the running serve.

    Prints the response. PATH begins with /v1 and may have a query. No token is needed, because whoever may open the
    control socket is an operator. docs/api.md describes the routes.

    The exit code is 0 for a status below 400 and 1 otherwise; it is 4 if no serve runs, or if it ends before the
    response does. Ctrl-C ends an event stream.

    \b
    Examples:
      gitmirror.pyz api GET /v1/openapi.json
      gitmirror.pyz api GET '/v1/sessions?path=README.md'
      echo '{"url": "https://github.com/acme/widgets"}' | gitmirror.pyz api POST /v1/repos --input -
      gitmirror.pyz api GET /v1/events
    """
    from appliance.core.api.client import send
    from appliance.core.errors import UsageError

    if not path.startswith("/v1/"):
        raise UsageError(f"{path} is not a path of the API", hint="it begins with /v1/, as /v1/openapi.json does")
    target = quote(path, safe=UNQUOTED)
    response = send(options.node().layout, method, target, body.read() if body else None, accept)
    try:
        for piece in response.pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
    except KeyboardInterrupt:
        # An event stream has no other end.
        if response.media_type != "text/event-stream":
            raise
    if response.status >= 400:
        say(f"status {response.status}")
        sys.exit(1)
