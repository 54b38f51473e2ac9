"""What NATS refuses while the connection holds: put into an operator's words, and said once for each cause."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nats.js.api import ClusterInfo

log = logging.getLogger(__name__)

SILENT = 4.0
"""Seconds without a word of a server, four times the heartbeat of JetStream, after which it counts as gone."""
SHOWN = 30.0
"""Seconds for which a refusal is told of after it was last met."""

_FULL = frozenset({10002, 10023, 10028, 10047, 10077})
"""Error codes of JetStream for what it has no room for: resources of the account, of the server, and of a stream."""
_WRONG_SEQUENCE = 10071
_STREAM_NOT_FOUND = 10059
_NO_CLUSTER, _NO_PEERS = 10074, 10005


class NatsRefusals:
    """Remembers what was refused lately to a node of the fleet of this name."""

    def __init__(self, fleet: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._fleet = fleet
        self._clock = clock
        self._seen: dict[str, float] = {}

    def note(self, error: BaseException) -> str | None:
        """Notes an error that tells of a refusal and returns it in words; None for any other error."""
        words = _refusal(error)
        if words is None:
            return None
        if self._clock() - self._seen.pop(words, float("-inf")) > SHOWN:
            log.warning("fleet %s: %s", self._fleet, words)
        self._seen[words] = self._clock()
        return words

    def text(self) -> str | None:
        """What was refused lately, or None."""
        self._seen = {words: at for words, at in self._seen.items() if self._clock() - at < SHOWN}
        return "; ".join(self._seen) or None


def is_answer(error: BaseException) -> bool:
    """Whether an error is an answer of JetStream's, such as that a key is not there, and no sign of trouble."""
    from nats.errors import MaxPayloadError
    from nats.js import errors

    if isinstance(error, errors.BucketNotFoundError) or getattr(error, "err_code", None) == _STREAM_NOT_FOUND:
        # The streams of the fleet are always there, unless NATS lost them.
        return False
    if isinstance(error, errors.APIError):
        is_known = isinstance(error, errors.NotFoundError | errors.KeyValueError)
        return is_known or error.err_code == _WRONG_SEQUENCE
    # What only this message's content brings about would come again each time.
    return isinstance(error, MaxPayloadError) or (
        isinstance(error, errors.Error)
        and not isinstance(error, errors.NoStreamResponseError | errors.TooManyStalledMsgsError)
        and not isinstance(error, errors.ConsumerSequenceMismatchError)
    )


def without_quorum(cluster: ClusterInfo | None) -> str | None:
    """Why a stream cannot be written, or None.

    Its leader goes on answering for 20 s after it has lost the others, and a server without a leader answers, too.
    """
    if cluster is None:
        return None
    if not cluster.leader:
        return "JetStream has no leader now"
    peers = cluster.replicas or []
    silent = [str(peer.name) for peer in peers if (peer.active or 0) > SILENT * 1e9]
    if 2 * (1 + len(peers) - len(silent)) > 1 + len(peers):
        return None
    return f"JetStream does not hear {' and '.join(silent)} of the servers that store the fleet"


def words_of(error: BaseException) -> str:
    """An error of nats-py without its decoration."""
    description = getattr(error, "description", None)
    text = description or str(error).removeprefix("nats: ")
    return str(text or type(error).__name__)


def _refusal(error: BaseException) -> str | None:
    code, text = getattr(error, "err_code", None), words_of(error)
    if code in _FULL:
        return f"NATS has no room for more ({text}): raise max_file_store in nats-server's configuration"
    if code in (_NO_CLUSTER, _NO_PEERS):
        return f"NATS cannot store as often as [fleet] replicas says ({text}): set it to at most the number of servers"
    if code is None and type(error).__name__ == "ServiceUnavailableError":
        return "nats-server runs without JetStream: add `jetstream {}` to its configuration"
    if found := re.search(r"permissions violation for (\w+)(?: to)? \"([^\"]*)\"", text, re.IGNORECASE):
        # Inboxes have a random name each.
        subject = re.sub(r"(?i)(_inbox)\..*", r"\1.>", found[2])
        return f"nats-server does not permit this user's {found[1]} to {subject}: mend the user's permissions"
    return None
