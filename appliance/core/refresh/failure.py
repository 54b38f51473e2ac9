"""Explains a failed refresh: its error word, its message, and the upstream's Retry-After."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from appliance.core.errors import GitmirrorError
from appliance.core.git.command import GitError
from appliance.core.git.failures import Kind, in_words, kind_of
from appliance.core.git.keyring import CredentialError
from appliance.core.refresh.runs import Heard


class HeardFailure(GitmirrorError):
    """Another node looked at the upstream and failed for a reason that holds here, too: the message is its own."""

    def __init__(self, kind: Kind, message: str, retry_after: float | None, heard: Heard) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after
        self.heard = heard


@dataclass(frozen=True)
class RefreshFailure:
    """One failure. `retry_after` is in seconds from now, or None if the upstream sent no Retry-After."""

    kind: Kind
    words: str
    retry_after: float | None = None

    def columns(self, started_at: float, ended_at: float, failures: int) -> dict[str, Any]:
        """The columns of Health after this failure, the `failures`-th in a row. Times are Unix seconds."""
        return {
            "checked_at": started_at,
            "last_error": self.words,
            "error_kind": str(self.kind),
            "retry_at": None if self.retry_after is None else ended_at + self.retry_after,
            "failures": failures,
        }


def failure_of(error: Exception) -> RefreshFailure:
    """Classifies `error`; an unexpected one is `other`."""
    if isinstance(error, HeardFailure):
        return RefreshFailure(error.kind, error.message, error.retry_after)
    if isinstance(error, CredentialError):
        # The message already names the entry and what to renew, so it needs no general sentence in front.
        kind = kind_of(error.stderr)
        return RefreshFailure(Kind.AUTH if kind is Kind.OTHER else kind, error.message)
    if isinstance(error, GitError):
        kind = kind_of(error.stderr or error.message, timed_out=error.timed_out)
        return RefreshFailure(kind, in_words(kind, error.message), error.retry_after)
    if isinstance(error, GitmirrorError):
        kind = kind_of(error.message)
        return RefreshFailure(kind, in_words(kind, error.message))
    return RefreshFailure(Kind.OTHER, f"unexpected {type(error).__name__}: {error}")
