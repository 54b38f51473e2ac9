"""What this node is let in with by NATS: the files of `[fleet] credentials_file` and `tls_ca`.

A credential is a user with a password, or an nkey seed. It is never shown.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import ssl
import stat
from dataclasses import dataclass, field
from pathlib import Path

from appliance.core.config.fleet import FleetConfig
from appliance.core.config.secret_files import open_secret
from appliance.core.errors import GitmirrorError
from appliance.core.fleet.ed25519 import public_key, sign
from appliance.core.git.keyring import SYSTEMD_CREDENTIALS

LARGEST = 4096
"""Bytes of the file; a seed has 58."""

_SEED, _USER = 18 << 3, 20 << 3
"""What the first ten bits of an nkey say: that it is a seed, and that it is a user's. As letters, `S` and `U`."""


class CredentialFault(GitmirrorError):
    """The file cannot be used; the message names it, and says nothing of what is in it."""


@dataclass(frozen=True)
class Credential:
    """Either `user` and `password`, or `seed`, the private key of an nkey. Its repr shows none of them."""

    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    seed: bytes | None = field(default=None, repr=False)

    @property
    def nkey(self) -> str | None:
        """The public key in the form of nkeys, `U...`, for the `users` of nats-server; None for a user."""
        return None if self.seed is None else _encoded(bytes([_USER]) + public_key(self.seed))

    def answer(self, nonce: str) -> bytes:
        """The signature of a server's nonce, as nats-py sends it."""
        assert self.seed is not None
        return base64.b64encode(sign(self.seed, nonce.encode()))


@dataclass(frozen=True)
class ServerAccess:
    """How this node calls itself to NATS servers, and what it is let in with.

    `certificates` are those that a server's must be signed by; None for the system's, and no TLS for `nats://`.
    """

    name: str
    credential: Credential | None
    certificates: ssl.SSLContext | None
    credential_file: str


def read_access(config: FleetConfig) -> ServerAccess:
    """Reads the files that `[fleet]` names. Raises CredentialFault."""
    credential = read_credential(Path(config.credentials_file)) if config.credentials_file else None
    certificates = None
    if config.tls_ca:
        try:
            certificates = ssl.create_default_context(cafile=config.tls_ca)
        except OSError as error:
            why = "no certificate is in it" if isinstance(error, ssl.SSLError) else error.strerror
            raise CredentialFault(
                f"[fleet] tls_ca cannot be used: {why}: {config.tls_ca}", hint="it holds certificates in PEM"
            ) from None
    return ServerAccess(f"gitmirror {config.node_name}", credential, certificates, config.credentials_file)


def read_credential(path: Path) -> Credential:
    """The credential in a file that only its owner can read. Raises CredentialFault."""
    try:
        with open_secret(path) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            # systemd gives the service files of its own, which are open to the service's group.
            if mode & 0o077 and SYSTEMD_CREDENTIALS not in path.parents:
                raise CredentialFault(
                    f"[fleet] credentials_file is open to other users (mode {mode:04o}), so it is not used",
                    hint=f"chmod 600 {path}",
                )
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise CredentialFault(
            f"[fleet] credentials_file cannot be read: {error.strerror}: {path}",
            hint="make it readable by the service's user and by nobody else",
        ) from None
    wanted = 'it holds one line, "USER:PASSWORD" or the seed of a user\'s nkey ("SU..."; `nk -gen user` makes one)'
    try:
        text = raw.decode("utf-8").strip("\r\n")
    except UnicodeDecodeError:
        text = ""
    if not text or len(raw) > LARGEST or re.search(r"[\x00-\x1f\x7f]", text):
        raise CredentialFault(f"[fleet] credentials_file is not one line of text: {path}", hint=wanted)
    user, colon, password = text.partition(":")
    if colon and user and password:
        return Credential(user, password)
    if (seed := seed_of(text.strip())) is None:
        raise CredentialFault(f"[fleet] credentials_file holds no credential: {path}", hint=wanted)
    return Credential(seed=seed)


def seed_of(text: str) -> bytes | None:
    """The private key in the seed of a user's nkey, 32 bytes, or None if it is none.

    A seed is base32 of two bytes that say what it is, the key, and a CRC-16, lowest byte first.
    """
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        return None
    body, check = raw[:-2], raw[-2:]
    if len(body) != 34 or check != binascii.crc_hqx(body, 0).to_bytes(2, "little"):
        return None
    # The kind stands in three bits of the first byte and five of the second.
    if body[0] & 0xF8 != _SEED or (body[0] & 7) << 5 | body[1] >> 3 != _USER:
        return None
    return body[2:]


def _encoded(body: bytes) -> str:
    raw = body + binascii.crc_hqx(body, 0).to_bytes(2, "little")
    return base64.b32encode(raw).decode().rstrip("=")
