"""What a refresh that failed means: its error word, its words, and how long the upstream wants to be left alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from appliance.core.errors import GitmirrorError
from appliance.core.git.command import GitError
from appliance.core.git.failures import Kind, in_words, kind_of
from appliance.core.git.keyring import CredentialError


@dataclass(frozen=True)
class RefreshFailure:
    """One failure. `retry_after` is in seconds from now, None when the upstream did not ask for patience."""

    kind: Kind
    words: str
    retry_after: float | None = None

    def columns(self, started_at: float, ended_at: float, failures: int) -> dict[str, Any]:
        """The columns of Health after a refresh that failed so, the `failures`-th in a row; times are Unix seconds."""
        return {
            "checked_at": started_at,
            "last_error": self.words,
            "error_kind": str(self.kind),
            "retry_at": None if self.retry_after is None else ended_at + self.retry_after,
            "failures": failures,
        }


def failure_of(error: Exception) -> RefreshFailure:
    """What `error` means; one that nobody thought of is `other`."""
    if isinstance(error, CredentialError):
        # It names the entry and what to renew; a sentence about credentials in front of that says nothing more.
        kind = kind_of(error.stderr)
        return RefreshFailure(Kind.AUTH if kind is Kind.OTHER else kind, error.message)
    if isinstance(error, GitError):
        kind = kind_of(error.stderr or error.message, timed_out=error.timed_out)
        return RefreshFailure(kind, in_words(kind, error.message), error.retry_after)
    if isinstance(error, GitmirrorError):
        kind = kind_of(error.message)
        return RefreshFailure(kind, in_words(kind, error.message))
    return RefreshFailure(Kind.OTHER, f"unexpected {type(error).__name__}: {error}")
