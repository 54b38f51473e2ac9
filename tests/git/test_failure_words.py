"""Maps git's error output to one word and a hint, and reads when to retry."""

from __future__ import annotations

import os
import re
import shutil
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.git.failures import MEANINGS, Kind, hint_of, in_words, kind_of
from appliance.core.git.http_trace import MOST_PATIENCE, USUAL_PATIENCE, retry_after
from tests.support.gitutil import clean_env, git, run_process
from tests.support.serve import ROOT

U = "fatal: unable to access 'https://example.com/a/b/': "
SAID = [
    (U + "Could not resolve host: example.com", "dns"),
    ("fatal: unable to look up no-such.invalid (port 9418) (Name or service not known)", "dns"),
    ("ssh: Could not resolve hostname x: Temporary failure in name resolution", "dns"),
    (U + "Failed to connect to example.com port 1 after 0 ms: Couldn't connect to server", "refused"),
    ("fatal: unable to connect to 127.0.0.1:\n127.0.0.1[0: 127.0.0.1]: errno=Connection refused\n", "refused"),
    ("fatal: unable to connect to h:\nh[0: 10.0.0.1]: errno=Connection timed out\n", "timeout"),
    (U + "Operation too slow. Less than 1 bytes/sec transferred the last 60 seconds", "timeout"),
    (U + "server certificate verification failed. CAfile: /etc/ssl/certs/ca.crt CRLfile: none", "tls"),
    (U + "SSL: certificate subject name (x.example) does not match target host name '127.0.0.1'", "tls"),
    (U + "gnutls_handshake() failed: An unexpected TLS packet was received.", "tls"),
    (U + "SSL certificate problem: unable to get local issuer certificate", "tls"),
    (U + "Problem with the SSL CA cert (path? access rights?)", "tls"),
    ("Host key verification failed.\nfatal: Could not read from remote repository.", "host-key"),
    ("fatal: could not read Username for 'http://127.0.0.1:7001': terminal prompts disabled", "auth"),
    ("remote: HTTP Basic: Access denied\nfatal: Authentication failed for 'https://example.com/a/b/'", "auth"),
    (U + "The requested URL returned error: 403", "auth"),
    ("git@example.com: Permission denied (publickey).\nfatal: Could not read from remote repository.", "auth"),
    (
        "remote: You have exceeded a secondary rate limit.\n" + U + "The requested URL returned error: 403",
        "rate-limited",
    ),
    (U + "The requested URL returned error: 429", "rate-limited"),
    ("remote: Repository not found.\nfatal: repository 'https://example.com/a/b/' not found", "not-found"),
    ("fatal: '/srv/a/b' does not appear to be a git repository\nfatal: Could not read from remote", "not-found"),
    ("fatal: https://example.com/a/b/info/refs not valid: is this a git repository?", "not-found"),
    ("fatal: remote error: access denied or repository not exported: /a/b", "not-found"),
    (U + "The requested URL returned error: 502", "server-error"),
    ("error: RPC failed; HTTP 500 curl 22 The requested URL returned error: 500", "server-error"),
    ("fatal: early EOF\nfatal: fetch-pack: invalid index-pack output", "broken"),
    ("fatal: the remote end hung up unexpectedly", "broken"),
    (U + "Recv failure: Connection reset by peer", "broken"),
    ("the upstream did not hand over 3 refs, including refs/heads/x", "shallow"),
    ("fatal: write error: No space left on device\nfatal: fetch-pack: invalid index-pack output", "disk-full"),
    ("the mirror of a/b cannot be written: [Errno 28] No space left on device", "disk-full"),
    ("the mirror of a/b cannot be written: [Errno 24] Too many open files", "open-files"),
    ("git cannot be started: [Errno 24] Too many open files", "open-files"),
    ("the mirror of a/b cannot be written: [Errno 13] Permission denied: '/state/x'", "permission"),
    ("error: cannot lock ref 'refs/heads/x': Unable to create '/state/x.lock': Permission denied", "permission"),
    ("error: cannot lock ref 'refs/heads/x': Unable to create '/state/x.lock': File exists.", "locked"),
    ("refs/heads/x cannot be stored here", "ref"),
    ("error: cannot lock ref 'refs/heads/x': unable to resolve reference 'refs/heads/x': reference broken", "mirror"),
    ("fatal: not a git repository (or any of the parent directories): .git", "mirror"),
    ("fatal: 'origin' does not appear to be a git repository", "mirror"),
    ("something that nobody has seen before", "other"),
    # What a repository is called, and what an upstream says, do not decide.
    ("fatal: unable to access 'https://x.example/certificate/429/': Couldn't connect to server", "refused"),
    (
        "remote: No space left on device\nremote: certificate\n" + U + "The requested URL returned error: 503",
        "server-error",
    ),
]


@pytest.mark.parametrize(("said", "kind"), SAID, ids=[f"{kind}-{number}" for number, (_, kind) in enumerate(SAID)])
def test_what_git_says_is_one_word(said: str, kind: str) -> None:
    """Each text was seen from git 2.39 or curl; the deadline wins over all of them."""
    assert kind_of(said) == kind
    assert kind_of(said, timed_out=True) is Kind.TIMEOUT


@given(st.text())
@pytest.mark.slow
def test_any_text_has_a_word_and_words(said: str) -> None:
    """Any other error is reported with its original text."""
    assert said in in_words(kind_of(said), said)


def test_every_word_is_explained_to_people() -> None:
    """Each kind is tested here, has its own sentence and hint, and is in the manual's table."""
    assert set(MEANINGS) == set(Kind) == {Kind(kind) for _, kind in SAID}
    assert len({meaning.hint for meaning in MEANINGS.values()}) == len(Kind)
    rows = re.findall(r"^\| `([a-z-]+)` \| .+ \| .+ \|$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    assert [row for row in rows if row in set(Kind)] == list(Kind)
    assert hint_of(None) is hint_of("a word of another version") is None


def said_by_git(*arguments: str, cwd: Path, files: int | None = None) -> str:
    """The error output of real git; `files` limits how many files it may have open."""
    limit = f"ulimit -n {files}; " if files else ""
    done = run_process(["sh", "-c", f'{limit}exec git "$@"', "git", *arguments], cwd=cwd, env=clean_env(cwd))
    assert done.returncode != 0
    return done.stderr.decode()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A bare repository with one commit, `main`."""
    bare = tmp_path / "bare.git"
    git("init", "--quiet", "--bare", "--initial-branch=main", str(bare))
    tree = git("mktree", cwd=bare, input="")
    git("update-ref", "refs/heads/main", git("commit-tree", "-m", "x", tree, cwd=bare), cwd=bare)
    return bare


def advice_on(said: str) -> tuple[Kind, str]:
    """The word for it and the hint that an operator gets."""
    kind = kind_of(said)
    return kind, hint_of(kind) or ""


def test_what_is_no_damage_advises_no_purge(repository: Path) -> None:
    """Real git's words on a stale lock, a name that is too long, a directory in the way, and no descriptors."""
    (repository / "refs" / "heads" / "x.lock").touch()
    (repository / "refs" / "heads" / "y").mkdir()
    (repository / "refs" / "heads" / "y" / "junk").touch()
    found = {
        Kind.LOCKED: said_by_git("update-ref", "refs/heads/x", "main", cwd=repository),
        Kind.REF: said_by_git("update-ref", f"refs/heads/{'n' * 300}", "main", cwd=repository),
        Kind.OPEN_FILES: said_by_git("update-ref", "refs/heads/z", "main", cwd=repository, files=3),
    }
    for kind, said in found.items():
        assert advice_on(said)[0] is kind, said
        assert "purge" not in advice_on(said)[1]
    said = said_by_git("update-ref", "refs/heads/y", "main", cwd=repository)
    assert advice_on(said)[0] is Kind.REF, said


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a repository to somebody else")
def test_a_wrong_owner_is_no_damage(repository: Path) -> None:
    """Real git's "dubious ownership"."""
    os.chown(repository, 12345, 12345)
    # The upload-pack of git 2.55 serves it all the same.
    said = said_by_git("rev-parse", "main", cwd=repository)
    assert "dubious" in said
    assert advice_on(said)[0] is Kind.PERMISSION
    assert "purge" not in advice_on(said)[1] and "chown" in advice_on(said)[1]


def test_a_heal_is_advised_for_damage_and_a_purge_for_nothing(repository: Path) -> None:
    """Real git's error for a directory that is no longer a repository. A purge would end every session."""
    shutil.rmtree(repository / "objects")
    kind, hint = advice_on(said_by_git("for-each-ref", cwd=repository))
    assert kind is Kind.MIRROR and "heal REPO" in hint and "session" in hint
    assert not [each for each, meaning in MEANINGS.items() if "purge" in meaning.hint]


def trace(status: int, *headers: str) -> str:
    """As git 2.39 writes it."""
    lines = [f"HTTP/1.1 {status} Whatever", *headers, ""]
    return "".join(f"21:22:54.308817 http.c:684              <= Recv header: {line}\n" for line in lines)


NOW = 1_700_000_000.0
DATE = format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", None),
        (trace(200, "Retry-After: 5"), None),
        (trace(429), USUAL_PATIENCE),
        (trace(429, "Retry-After: 120"), 120),
        (trace(429, "retry-after:   0"), 0),
        (trace(429, f"Retry-After: {DATE}"), 90),
        (trace(429, "Retry-After: Wed, 21 Oct 2015 07:28:00 GMT"), 0),
        (trace(429, "Retry-After: soon"), USUAL_PATIENCE),
        (trace(429, "Retry-After: -5"), USUAL_PATIENCE),
        (trace(429, "Retry-After: 99999999999999999999"), MOST_PATIENCE),
        (trace(503, "Retry-After: 7"), 7),
        (trace(503), None),
        (trace(403, "Retry-After: 60"), 60),
        (trace(302, "Retry-After: 9") + trace(429, "Retry-After: 3"), 3),
        (trace(429, "Retry-After: 9") + trace(200), None),
        ("remote: Retry-After: 9\n" + trace(503), None),
    ],
)
def test_when_to_ask_again(text: str, seconds: float | None) -> None:
    """Both forms of Retry-After on the last response, if it is a refusal; never more than an hour."""
    assert retry_after(text, NOW) == seconds


@given(st.text())
def test_no_header_breaks_anything(value: str) -> None:
    """A malformed Retry-After counts as absent."""
    found = retry_after(trace(429, f"Retry-After: {value}"), NOW)
    assert found is not None and 0 <= found <= MOST_PATIENCE
