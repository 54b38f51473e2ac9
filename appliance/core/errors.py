"""The one base error. What a person sees is its message (what happened, to what) and its hint (what to do)."""

from __future__ import annotations


class GitmirrorError(Exception):
    """Something failed that a person can act on.

    `message` says what happened and to what, `hint` what to do about it (may be empty),
    `exit_code` is what a command that ends by it returns (1: the operation failed).
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


class NotServing(GitmirrorError):
    """`serve` is not running on this state directory and the command needs it."""

    default_exit_code = 4
