"""Which authorities git trusts for an https upstream: the system's, read once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
"""Where Debian, Alpine and Arch keep the certificates of all authorities in one file."""
OWN_AUTHORITIES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH")
"""The variables by which an operator names others."""


def trust_config(environ: Mapping[str, str], *, nothing: Path) -> str:
    """Lines of git's config: that file, and the empty directory `nothing` for the one that has them all again.

    A libcurl with GnuTLS reads both: 48 ms of processor time for an ls-remote, not 21. No lines where there is no
    such file, or where the environment names others: then libcurl decides.
    """
    if not AUTHORITIES.is_file() or any(name in environ for name in OWN_AUTHORITIES):
        return ""
    return f'[http]\n\tsslCAInfo = {AUTHORITIES}\n\tsslCAPath = "{_escaped(nothing)}"\n'


def _escaped(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace('"', '\\"')
