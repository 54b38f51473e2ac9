"""Secrets in files: read when they are needed, read again when the file has changed, and never shown."""

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
    """The file of a secret cannot be used. Callers then refuse the request instead of using an empty secret."""


class SecretFile:
    """The secret in the file that the setting `name` points at. `path` returns that setting; empty means no secret."""

    def __init__(self, name: str, path: Callable[[], str]) -> None:
        self._name = name
        self._path = path
        self._seen: tuple[str, int, int, int] | None = None
        self._secret = b""

    def read(self) -> bytes | None:
        """Returns the secret without one trailing newline, or None when the setting is empty. Raises SecretError."""
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
                hint="make it readable by the service's user and by nobody else",
            ) from None
        if not self._secret:
            raise SecretError(f"the file of {self._name}, {path}, is empty", hint="write the secret into the file")
        return self._secret

    def problem(self) -> str | None:
        """Returns the reason why the secret cannot be used; None when it can, or when the setting is empty."""
        try:
            self.read()
        except SecretError as error:
            return error.message
        return None


def open_secret(path: Path) -> BinaryIO:
    """Opens a file that an operator named. Raises OSError, among others for what is not a regular file.

    Opening a named pipe would block until somebody writes to it, and all of `serve` would wait with it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def is_equal(given: bytes, secret: bytes) -> bool:
    """Compares two secrets in constant time, so that the time does not reveal where they differ."""
    return hmac.compare_digest(given, secret)
