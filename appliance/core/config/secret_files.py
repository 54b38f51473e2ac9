"""A secret that an operator keeps in a file: read when it is needed, again when the file changed, never shown."""

from __future__ import annotations

import errno
import hmac
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from appliance.core.errors import GitmirrorError

LARGEST = 65536


class SecretError(GitmirrorError):
    """The file of a secret cannot be used. What needs it refuses, since no secret is not the empty one."""


class SecretFile:
    """The secret that the setting `name` points at; `path` reads the setting, the empty text turns it off."""

    def __init__(self, name: str, path: Callable[[], str]) -> None:
        self._name = name
        self._path = path
        self._seen: tuple[str, int, int, int] | None = None
        self._secret = b""

    def read(self) -> bytes | None:
        """The secret without one trailing newline; None when the setting is empty. Raises SecretError."""
        path = self._path()
        if not path:
            return None
        try:
            with open_secret(Path(path)) as file:
                status = os.fstat(file.fileno())
                seen = (path, status.st_ino, status.st_mtime_ns, status.st_size)
                if seen != self._seen:
                    self._secret = file.read(LARGEST).removesuffix(b"\n")
                    self._seen = seen
        except OSError as error:
            self._seen = None
            raise SecretError(
                f"the file of {self._name}, {path}, cannot be read: {error.strerror}",
                hint="make it readable for the service's user, and for nobody else",
            ) from None
        if not self._secret:
            raise SecretError(f"the file of {self._name}, {path}, is empty", hint="write the secret into it")
        return self._secret

    def problem(self) -> str | None:
        """Why the secret cannot be used, in words; None when it can or is not wanted."""
        try:
            self.read()
        except SecretError as error:
            return error.message
        return None


def open_secret(path: Path) -> BinaryIO:
    """Opens a file that an operator named. Raises OSError, also for what is no regular file.

    Opening a named pipe would wait until somebody writes into it, and the whole of `serve` with it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def is_equal(given: bytes, secret: bytes) -> bool:
    """Whether they are the same, in a time that says nothing about where they differ."""
    return hmac.compare_digest(given, secret)
