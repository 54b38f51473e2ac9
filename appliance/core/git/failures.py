"""Classifies a failed refresh as one word of a short list, from git's error output, and explains each word. Pure.

The patterns match what git 2.39 and libcurl (with GnuTLS and with OpenSSL) print under `LC_ALL=C`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """The error word of a repository: `error` in `status --json`, `kind` in metrics."""

    DNS = "dns"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    TLS = "tls"
    HOST_KEY = "host-key"
    AUTH = "auth"
    NOT_FOUND = "not-found"
    RATE_LIMITED = "rate-limited"
    SERVER_ERROR = "server-error"
    BROKEN = "broken"
    SHALLOW = "shallow"
    DISK_FULL = "disk-full"
    OPEN_FILES = "open-files"
    PERMISSION = "permission"
    LOCKED = "locked"
    REF = "ref"
    MIRROR = "mirror"
    OTHER = "other"


@dataclass(frozen=True)
class Meaning:
    """A kind explained to a person: `words` says what happened, `hint` what to do."""

    words: str
    hint: str


MEANINGS: dict[Kind, Meaning] = {
    Kind.DNS: Meaning(
        "the upstream's host name cannot be resolved",
        "check the host in the URL, and this node's DNS (`getent hosts HOST`)",
    ),
    Kind.REFUSED: Meaning(
        "cannot connect to the upstream",
        "check that its server is running, that the port is right, and firewalls and proxies in between",
    ),
    Kind.TIMEOUT: Meaning(
        "the upstream takes too long to answer",
        "check whether it is down or the network loses packets; a large first clone may need a longer [refresh] "
        "timeout",
    ),
    Kind.TLS: Meaning(
        "the upstream's certificate cannot be trusted, or it does not speak TLS",
        "check its certificate (host name, expiry, issuer) and this node's clock; add a private authority to the "
        "node's trust store, or name it in GIT_SSL_CAINFO for serve",
    ),
    Kind.HOST_KEY: Meaning(
        "the upstream's ssh host key is not the one that is pinned",
        "compare its fingerprint with the one its operator publishes, then correct the known-hosts file",
    ),
    Kind.AUTH: Meaning(
        "the upstream demands a credential, or refuses the one it got",
        "check whether the repository became private; configure a valid credential that may read it",
    ),
    Kind.NOT_FOUND: Meaning(
        "the upstream has no such repository, or hides it from requests without a credential",
        "check the URL: the repository may have been renamed, deleted or made private",
    ),
    Kind.RATE_LIMITED: Meaning(
        "the upstream's rate limit was reached",
        "nothing to do: it is asked again once the upstream allows it; if this keeps happening, set a longer interval",
    ),
    Kind.SERVER_ERROR: Meaning(
        "the upstream reports an internal error",
        "wait; if it continues, check the upstream's status page or tell its operator",
    ),
    Kind.BROKEN: Meaning(
        "the upstream's response was cut off or is invalid",
        "check whether a proxy cuts off long responses; if it continues, the upstream repository may be damaged",
    ),
    Kind.SHALLOW: Meaning(
        "the upstream does not have its whole history",
        "mirror a full repository: a shallow or partial clone cannot be mirrored",
    ),
    Kind.DISK_FULL: Meaning(
        "this node's disk is full",
        "free space on the disk of the state directory; a smaller [cache] budget helps too",
    ),
    Kind.OPEN_FILES: Meaning(
        "this node has no file descriptors left",
        "raise LimitNOFILE of the service (fs.file-max of the node), or lower max_clients; nothing is damaged",
    ),
    Kind.PERMISSION: Meaning(
        "files of the mirror, or of a local upstream, belong to another user or cannot be written",
        "give them to the service's user (chown -R, chmod -R u+rwX), and check whether the disk is mounted read-only; "
        "nothing is damaged",
    ),
    Kind.LOCKED: Meaning(
        "a git lock file is in the way",
        "check whether somebody is running git in the mirror; if not, a killed git left the lock, and restarting serve "
        "removes it; nothing is damaged",
    ),
    Kind.REF: Meaning(
        "a ref of the upstream cannot be stored here",
        "rename or delete that ref upstream: its name is too long for this disk, or it conflicts with another ref; the "
        "other refs are mirrored",
    ),
    Kind.MIRROR: Meaning(
        "the mirror on this node is damaged",
        "check its disk; the mirror is inspected and healed automatically, and `heal REPO` does it at once; every "
        "session that can still be read is kept",
    ),
    Kind.OTHER: Meaning("the refresh failed", "the error text is all that is known; see the log"),
}

_SIGNS: Sequence[tuple[Kind, str]] = (
    # Causes on this node come first, because a full disk makes git print other errors after it.
    (Kind.DISK_FULL, r"no space left on device|disk quota exceeded|file too large"),
    (Kind.OPEN_FILES, r"too many open files|cannot open shared object file: error 24"),
    (Kind.PERMISSION, r"dubious ownership|insufficient permission|read-only file system|operation not permitted"),
    (Kind.LOCKED, r"\.lock': file exists|another git process seems to be running"),
    (
        Kind.REF,
        r"file name too long|cannot be stored here|non-empty directory '|'refs/[^']+' exists; cannot create"
        r"|cannot process '.*' and '.*' at the same time",
    ),
    (Kind.SHALLOW, r"did not hand over|shallow update not allowed|source repository is shallow"),
    # git prints this when the directory is no longer a repository, so that `origin` is not configured.
    (Kind.MIRROR, r"'origin' does not appear to be a git repository"),
    (Kind.HOST_KEY, r"host key verification failed|remote host identification has changed"),
    (Kind.RATE_LIMITED, r"returned error: 429|rate limit"),
    (
        Kind.TLS,
        r"certificate|gnutls_handshake|ssl_connect|ssl_error|\bssl: |ssl ca cert|tls connection|ssl routines"
        r"|unable to get local issuer|unexpected tls packet",
    ),
    (
        Kind.DNS,
        r"could not resolve (?:host|proxy)|unable to look up|name or service not known|could not resolve hostname"
        r"|temporary failure in name resolution",
    ),
    (
        Kind.AUTH,
        r"could not read (?:username|password)|authentication failed|returned error: (?:401|403|407)"
        r"|permission denied \(|terminal prompts disabled|access denied(?! or)|invalid credentials",
    ),
    (
        Kind.NOT_FOUND,
        r"repository '.*' not found|repository not found|returned error: (?:404|410|451)"
        r"|does not appear to be a git repository|is this a git repository|access denied or repository not exported"
        r"|couldn't find remote ref|not mirrored here",
    ),
    (Kind.SERVER_ERROR, r"returned error: 5\d\d|http 5\d\d|internal server error"),
    (Kind.TIMEOUT, r"timed out|operation too slow|timeout was reached|took longer than"),
    (
        Kind.REFUSED,
        r"failed to connect|couldn't connect|connection refused|unable to connect|no route to host"
        r"|network is unreachable",
    ),
    (Kind.PERMISSION, r"permission denied"),
    (
        Kind.MIRROR,
        r"cannot lock ref|unable to create '.*\.lock'|not a git repository"
        r"|cannot be (?:read or )?written|bad config|unable to read tree|could not parse "
        r"object|missing (?:blob|tree|commit)|loose object .* is corrupt|packfile .* (?:is|cannot be)",
    ),
    (
        Kind.BROKEN,
        r"no git server sends|early eof|hung up|transfer closed|unexpected disconnect|index-pack|unpack-objects"
        r"|rpc failed|protocol error|connection reset|recv failure|empty reply|bad line length"
        r"|invalid (?:packet|server|ls-refs|section)"
        r"|pack (?:is corrupted|has bad)|inflate|bad (?:object|pack)|expected",
    ),
)
_PATTERNS = [(kind, re.compile(signs, re.IGNORECASE)) for kind, signs in _SIGNS]
_NAMES = re.compile(r"\b[a-z+]+://[^\s']*|'/[^']*(?<!\.lock)'")
"""URLs and paths in git's output. They are ignored because a repository may be called `certificates`."""


def kind_of(text: str, *, timed_out: bool = False) -> Kind:
    """The kind of a failure, judged by the error `text` of git or of the operating system.

    Lines that begin with `remote: ` are used only if nothing else matches, because the upstream may put any text there.
    """
    if timed_out:
        return Kind.TIMEOUT
    lines = _NAMES.sub("''", text).splitlines()
    own = "\n".join(line for line in lines if not line.startswith("remote: "))
    for candidate in (own, "\n".join(lines)):
        for kind, pattern in _PATTERNS:
            if pattern.search(candidate):
                # GitHub answers 403 to clients that exceed its rate limit, and mentions the limit in the text.
                if kind is Kind.AUTH and "error: 403" in own and re.search(r"rate limit", text, re.IGNORECASE):
                    return Kind.RATE_LIMITED
                return kind
    return Kind.OTHER


def in_words(kind: Kind | str | None, text: str) -> str:
    """The sentence that explains a kind, followed by the original text: `last_error` of a repository."""
    if kind is None or kind == Kind.OTHER:
        return text
    return f"{MEANINGS[Kind(kind)].words}: {text}"


def hint_of(kind: str | None) -> str | None:
    """What to do about a kind as it is stored; None if there is no kind, or it is one of another version."""
    return MEANINGS[Kind(kind)].hint if kind in MEANINGS else None


_DAMAGE = re.compile(
    r"possible repository corruption|input/output error|\bis corrupt\b|corrupt (?:loose|packed) object"
    r"|(?:object|packfile|index file|commit-graph|multi-pack-index)\b.* "
    r"(?:does not match|cannot be|is empty|is too small)"
    r"|far too short to be a packfile|bad (?:object|tree object|packed-ref|offset|config)|(?:sha1|hash) mismatch"
    r"|missing (?:blob|tree|commit|necessary)\b|necessary objects|unresolved delta|invalid sha1 pointer"
    r"|ignoring (?:broken ref|dangling symref)|broken link|reference broken|not point to a valid object"
    r"|(?:unexpected|unterminated) line in|(?:could not|unable to) (?:read|find) [0-9a-f]{40}"
    r"|unable to (?:read (?:tree|sha1 file|object)|unpack|parse)|could not parse (?:object|commit)"
    r"|failed to (?:read (?:object|delta)|traverse|unpack)|cannot unpack|inflate: |garbage at end of"
    r"|not a git repository|'origin' does not appear",
    re.IGNORECASE,
)
_OF_THE_MACHINE = frozenset({Kind.DISK_FULL, Kind.OPEN_FILES, Kind.PERMISSION, Kind.LOCKED})
MOST_WORDS = 300
"""How many characters of a line from git are kept."""


def speaks_of_damage(text: str) -> str | None:
    """Returns the first line of git's error output that a damaged repository on this node explains; None without one.

    Such a line proves nothing, because an upstream or a guest can cause some of them too: only an inspection shows
    damage. Lines from the upstream (`remote: `) are ignored, and no line counts if the machine lacked something.
    """
    lines = [line for line in text.splitlines() if not line.startswith("remote: ")]
    found = next((line for line in lines if _DAMAGE.search(_NAMES.sub("''", line))), None)
    if found is None or kind_of("\n".join(lines)) in _OF_THE_MACHINE:
        return None
    return found[:MOST_WORDS]
