"""The base class of all errors shown to a person: a message (what happened, to what) and a hint (what to do)."""

from __future__ import annotations


class GitmirrorError(Exception):
    """An error that a person can act on.

    `message` says what happened and to what. `hint` says what to do about it and may be empty. `exit_code` is the
    exit code of a command that fails with this error (1: the operation failed).
    """

    default_exit_code = 1

    def __init__(self, message: str, *, hint: str = "", exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = self.default_exit_code if exit_code is None else exit_code


class UsageError(GitmirrorError):
    """The command, the configuration or an argument is wrong; nothing was changed."""

    default_exit_code = 2


class NotFound(GitmirrorError):
    """What was asked for by its name, path or id does not exist."""


class Conflict(UsageError):
    """The change contradicts what is there, such as a name that belongs to another URL; nothing was changed."""


class TooLarge(GitmirrorError):
    """The answer would be larger than a limit, which the message names; the hint says how to get it all the same."""


class Forbidden(GitmirrorError):
    """Whoever asks may not do this; nothing was changed."""


class NoRoom(GitmirrorError):
    """The disk is full, or a limit on what may be stored is reached; nothing was changed."""


class TryLater(GitmirrorError):
    """It cannot be done now, and probably can be in `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: int, hint: str = "try again") -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class NotServing(GitmirrorError):
    """The command needs a `serve`, and none is running on this state directory."""

    default_exit_code = 4
