"""What `[[credentials]]` may contain, which entry is for which upstream, and which headers of guests are valid."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import shutil
import threading
from pathlib import Path

import pytest

from appliance.core.access.catalog import Catalog
from appliance.core.access.gate import READ_TOKEN, AccessGate
from appliance.core.access.known_guests import KnownGuests
from appliance.core.access.privacy import Privacy
from appliance.core.config.credentials import CredentialConfig, Credentials
from appliance.core.config.secret_files import SecretFile
from appliance.core.config.settings import parse_config
from appliance.core.errors import UsageError
from appliance.core.git import keyring
from appliance.core.git.command import GitError
from appliance.core.git.mirror import Mirror, is_marked
from appliance.core.models import Repo
from appliance.core.ops.doctor import examine
from appliance.core.refresh.failure import RefreshFailure, failure_of
from appliance.core.store.database import Database
from appliance.core.store.tokens import KEPT, TokenStore
from appliance.core.upstream import any_ssh, parse_upstream, same_upstream
from tests.access.conftest import write_secret
from tests.git.conftest import lab as lab
from tests.git.lab import Lab
from tests.ops.test_doctor import OFF, appliance

FILE = Path("/etc/gitmirror/gitmirror.toml")
TOKEN_FILE = 'token_file = "/run/t"\n'
SSH = 'ssh_key = "/run/k"\nknown_hosts = "/run/h"\n'


def entry(text: str) -> CredentialConfig:
    [found] = parse_config(f"[[credentials]]\n{text}", FILE).credentials
    return found


def test_an_entry_is_read_with_its_defaults() -> None:
    """A command is a list of words, or is split as a shell does it."""
    found = entry('url = "https://GitHub.com:443/acme/"\n' + TOKEN_FILE)
    assert (found.url, found.token_file, found.username, found.readers) == (
        "https://github.com/acme",
        "/run/t",
        "x-access-token",
        "token",
    )
    words = ("vault", "read", "a b")
    assert entry('url = "https://h"\ncommand = "vault read \'a b\'"\n').command == words
    assert entry('url = "https://h"\ncommand = ["vault", "read", "a b"]\n').command == words
    ssh = entry('url = "git@github.com:acme"\nreaders = "open"\n' + SSH)
    assert (ssh.url, ssh.readers, ssh.ssh_key) == ("ssh://github.com/acme", "open", "/run/k")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TOKEN_FILE, "url is missing"),
        ('url = "https://h"\n', "has no credential"),
        ('url = "https://h"\ncommand = "x"\n' + TOKEN_FILE, "has token_file and command"),
        ('url = "ssh://h"\n' + TOKEN_FILE, "token_file is for https"),
        ('url = "https://h"\n' + SSH, "are for ssh"),
        ('url = "https://h"\nknown_hosts = "/h"\n' + TOKEN_FILE, "are for ssh"),
        ('url = "ssh://h"\nssh_key = "/run/k"\n', "known_hosts is missing"),
        ('url = "http://example.com"\n' + TOKEN_FILE, "can be read by anybody on the network path"),
        ('url = "git://h"\n' + TOKEN_FILE, "credentials[1].url is"),
        ('url = "https://bob:s3cret@h"\n' + TOKEN_FILE, "credentials[1].url is"),
        ('url = "https://h?x=s3cret"\n' + TOKEN_FILE, "credentials[1].url is"),
        ('url = "acme"\n' + TOKEN_FILE, "credentials[1].url is"),
        ('url = "https://h"\ntoken_file = "relative"\n', "credentials[1].token_file is"),
        ('url = "ssh://h"\nknown_hosts = "/h"\nssh_key = "/$k"\n', "credentials[1].ssh_key is"),
        ('url = "https://h"\ncommand = "x \'"\n', "credentials[1].command is"),
        ('url = "https://h"\nreaders = "all"\n' + TOKEN_FILE, "credentials[1].readers is"),
        ('url = "https://h"\nusername = "a:b"\n' + TOKEN_FILE, "credentials[1].username is"),
        ('url = "https://h"\ntoken = "s3cret"\n', "unknown key credentials[1].token"),
        (
            'url = "https://h"\n' + TOKEN_FILE + '[[credentials]]\nurl = "https://h/"\n' + TOKEN_FILE,
            "already has an entry",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(text: str, words: str) -> None:
    """The error names the file, the entry, the reason and what to do, but never repeats a password."""
    with pytest.raises(UsageError) as caught:
        entry(text)
    assert words in caught.value.message and str(FILE) in caught.value.message and caught.value.hint
    assert "bob" not in caught.value.message


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://github.com/acme/secret", "https://github.com/acme"),
        ("https://GitHub.com/acme/secret.git/", "https://github.com/acme"),
        ("https://github.com:443/acme/one", "https://github.com/acme/one"),
        ("https://github.com/acme/one.git", "https://github.com/acme/one"),
        ("https://github.com/acme/one-more", "https://github.com/acme"),
        ("https://github.com/acme2/secret", "https://github.com"),
        ("https://github.com.evil.example/acme/secret", None),
        ("https://github.com:8443/acme/secret", None),
        ("http://github.com/acme/secret", None),
        ("git@github.com:acme/secret.git", "ssh://github.com"),
        ("ssh://git@github.com:22/acme/secret", "ssh://github.com"),
        ("/srv/git/acme/secret", None),
    ],
)
def test_the_longest_entry_by_whole_parts_is_the_one(url: str, found: str | None) -> None:
    """However the upstream's URL is written."""
    urls = ["https://github.com", "https://github.com/acme", "https://github.com/acme/one"]
    credentials = Credentials(
        [*(CredentialConfig(url=each) for each in urls), CredentialConfig(url="ssh://github.com")]
    )
    entry = credentials.match(parse_upstream(url, allow_local=True, has_key=any_ssh).address)
    assert (entry.url if entry else None) == found


def test_the_two_ways_to_write_an_ssh_upstream_are_one() -> None:
    """The scp form has a name and an identity as ssh:// has; another user's is another upstream."""
    scp = parse_upstream("git@example.com:acme/secret.git", allow_local=False, has_key=any_ssh)
    assert (scp.url, scp.default_name, scp.host) == ("git@example.com:acme/secret.git", "acme/secret", "example.com")
    assert same_upstream("git@example.com:acme/secret.git", "ssh://git@example.com/acme/secret")
    assert not same_upstream("git@example.com:acme/secret.git", "ssh://eve@example.com/acme/secret")
    for bad in ("-oProxyCommand=id:x/y", "git@-oProxyCommand=id:x/y", "ssh://-oProxyCommand=id/x/y", "git@h:"):
        with pytest.raises(UsageError):
            parse_upstream(bad, allow_local=False, has_key=any_ssh)


def repo(number: int, name: str, url: str) -> Repo:
    return Repo(number, name, url, None, "cli", None, True, 0.0)


def test_privacy_outlives_its_entry(lab: Lab) -> None:
    """An entry decides; without one the mark in the mirror does, and an ssh upstream is never open."""
    secret = repo(1, "acme/secret", "https://h/acme/secret")
    mirror = Mirror(lab.layout.mirror(secret.name), lab.git)
    lab.run(mirror.initialise(secret.url))

    def readers(repo: Repo, *entries: CredentialConfig) -> str | None:
        return Privacy(lab.layout, Credentials(entries)).readers(repo.name, repo.url)

    closed, opened = CredentialConfig(url="https://h"), CredentialConfig(url="https://h", readers="open")
    assert [readers(secret), readers(secret, closed), readers(secret, opened)] == [None, "token", "open"]
    mirror.mark(secret.url)
    assert [readers(secret), readers(secret, closed), readers(secret, opened)] == ["token", "token", "open"]
    mirror.configure(secret.url)
    mirror.remove_leftovers()
    assert is_marked(mirror.path)
    # What came from one upstream is not opened by another one's being open.
    mirror.unmark("https://h/acme/open")
    mirror.mark("https://h/acme/open")
    mirror.unmark("https://h/acme/open")
    assert readers(secret) == "token"
    mirror.unmark("https://H/acme/secret.git")
    assert readers(secret) is None
    assert readers(repo(2, "acme/ssh", "git@h:acme/ssh")) == "token"


def test_the_door_knows_a_token_by_its_repository_alone() -> None:
    """Which paths are private, where a public one is under the same path, and what a header must look like."""
    secret, other = repo(1, "acme/secret", "https://h/acme/secret"), repo(2, "acme/other", "https://h/x/other")
    shown = repo(3, "acme/shown", "https://open.example/acme/secret")
    token, asked = "gmt_" + "a" * 43, []

    async def grants(given: str) -> int | None:
        asked.append(given)
        return 1 if given == token else None

    door = AccessGate(lambda _: True, grants, KnownGuests(lambda: 0.0))
    door.catalog = Catalog([secret, other, shown], lambda each: each.id in (1, 2))

    def find(path: str, header: str | None) -> Repo | None:
        return asyncio.run(door.find_for(path, header))

    encoded = base64.b64encode(f"me:{token}".encode()).decode()
    for header in (f"Bearer {token}", f"BEARER {token} ", f"Basic {encoded}"):
        assert find("/acme/secret", header) is secret
        assert find("/h/acme/secret.git", header) is secret
        assert find("/acme/other", header) is None
        assert find("/acme/shown", header) is shown
    asked.clear()
    others = ["", token, f"Token {token}", f"Bearer {token}x", "Basic " + encoded[:-4], "Basic é"]
    for refused in (None, *others):
        assert find("/acme/secret", refused) is None
        assert find("/acme/shown", refused) is shown
    assert asked == []
    assert door.find("/acme/secret") is None and door.find("/h/acme/secret") is None
    assert door.catalog.upstream_host("h") is None
    assert door.catalog.upstream_host("open.example") == "https://open.example"
    # An unknown path costs the same look-up as a private one.
    assert find("/acme/nowhere", f"Bearer {token}") is None and asked == [token]


@pytest.mark.skipif(shutil.which("ssh") is None, reason="there is no ssh")
def test_doctor_looks_at_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by itself: there, closed to others, not empty; ssh and the command there at all."""
    token, key, hosts = tmp_path / "token", tmp_path / "key", tmp_path / "hosts"
    settings = (
        OFF
        + f'[[credentials]]\nurl = "https://h/acme"\ntoken_file = "{token}"\n'
        + f'[[credentials]]\nurl = "ssh://h"\nssh_key = "{key}"\nknown_hosts = "{hosts}"\n'
        + '[[credentials]]\nurl = "https://c"\ncommand = "sh -c true"\nreaders = "open"\n'
    )

    def looked_at() -> dict[str, tuple[bool, str]]:
        checks = [check for check in examine(appliance(tmp_path, settings)) if check.name.startswith("credentials ")]
        assert all(check.mend for check in checks)
        return {check.name.removeprefix("credentials "): (check.ok, check.found) for check in checks}

    found = looked_at()
    assert not found["https://h/acme"][0] and "the token cannot be read: No such file" in found["https://h/acme"][1]
    assert not found["ssh://h"][0] and "known_hosts cannot be read" in found["ssh://h"][1]
    assert found["https://c"] == (True, "command sh; its mirrors are open to everybody")
    write_secret(token, "")
    write_secret(key, "k").chmod(0o640)
    hosts.write_text("")
    found = looked_at()
    assert "the token is empty" in found["https://h/acme"][1]
    assert "mode 0640" in found["ssh://h"][1] and "known_hosts is empty" in found["ssh://h"][1]
    # systemd's own files are let in by an ACL, which looks like a group's bits.
    monkeypatch.setattr(keyring, "SYSTEMD_CREDENTIALS", tmp_path)
    assert "mode" not in looked_at()["ssh://h"][1]
    monkeypatch.undo()
    token.write_text("s3cret")
    key.chmod(0o600)
    hosts.write_text("h ssh-ed25519 A\n")
    found = looked_at()
    assert found["https://h/acme"] == (True, f"{token}; its mirrors are private")
    assert found["ssh://h"][0]
    monkeypatch.setenv("PATH", str(tmp_path))
    found = looked_at()
    assert "ssh is missing" in found["ssh://h"][1] and "its command is missing: sh" in found["https://c"][1]


def test_a_named_pipe_in_the_place_of_a_secret_is_refused_at_once(tmp_path: Path) -> None:
    """Opening one blocks until somebody writes to it, and all guests would wait."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    with_token = CredentialConfig(url="https://h", token_file=str(pipe))
    with_key = CredentialConfig(url="ssh://h", ssh_key=str(pipe), known_hosts=str(pipe))
    found: list[str | None] = []

    def look() -> None:
        found.append(SecretFile("[refresh] token_file", lambda: str(pipe)).problem())
        found.extend([*keyring.check_files(with_token), *keyring.check_files(with_key)])

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(60)
    assert len(found) == 4 and all(words and "Not a regular file" in words for words in found), found


def test_those_who_wait_for_a_command_share_its_failure(lab: Lab, tmp_path: Path) -> None:
    """Otherwise one that hangs would delay each of its repositories in turn, and occupy every slot."""
    command = ("sh", "-c", f"echo run >>'{tmp_path}/runs'; sleep 0.2; echo sealed >&2; exit 3")
    upstream = parse_upstream("https://h/acme/secret", allow_local=False)

    async def told() -> list[str]:
        keys = keyring.Keyring(Credentials([CredentialConfig(url="https://h", command=command)]), lab.git.environment)

        async def one() -> str:
            try:
                async with keys.open(upstream, lab.git):
                    return "opened"
            except keyring.CredentialError as error:
                return error.message

        found = await asyncio.gather(*(one() for _ in range(20)))
        return [*found, await one()]

    found = asyncio.run(told())
    assert len(found) == 21 and all("ended with code 3: sealed" in words for words in found), found
    # Who comes later asks again.
    assert (tmp_path / "runs").read_text() == "run\nrun\n"


def test_a_command_is_asked_again_for_a_refusal_alone(lab: Lab, tmp_path: Path) -> None:
    """An upstream that is down says nothing about the token, so the command does not run again at every try."""
    command = ("sh", "-c", f"echo run >>'{tmp_path}/runs'; echo s3cret")
    upstream = parse_upstream("https://h/acme/secret", allow_local=False)

    async def told(*said: str) -> int:
        keys = keyring.Keyring(Credentials([CredentialConfig(url="https://h", command=command)]), lab.git.environment)
        for words in said:
            with contextlib.suppress(GitError):
                async with keys.open(upstream, lab.git):
                    raise GitError("git ls-remote failed", stderr=words)
        return (tmp_path / "runs").read_text().count("run")

    assert asyncio.run(told("fatal: Could not resolve host: h", "fatal: Could not resolve host: h")) == 1
    refused = "fatal: Authentication failed for 'https://h/acme/secret/'"
    assert asyncio.run(told(refused, refused)) == 1 + 2


def test_a_refusal_about_how_often_is_none_of_the_credential(lab: Lab, tmp_path: Path) -> None:
    """GitHub answers 403 to both. If its message mentions a rate limit, nobody is told to renew a valid token."""
    token = write_secret(tmp_path / "token", "s3cret")
    keys = keyring.Keyring(Credentials([CredentialConfig(url="https://h/acme", token_file=str(token))]), {})
    upstream = parse_upstream("https://h/acme/secret", allow_local=False)

    async def refused(said: str) -> RefreshFailure:
        try:
            async with keys.open(upstream, lab.git):
                raise GitError("git ls-remote failed", stderr=said)
        except GitError as error:
            return failure_of(error)

    said = "fatal: unable to access 'https://h/acme/secret/': The requested URL returned error: 403"
    trouble = asyncio.run(refused(said))
    assert trouble.kind == "auth" and "Renew" in trouble.words
    trouble = asyncio.run(refused(f"remote: You have exceeded a secondary rate limit.\n{said}"))
    assert trouble.kind == "rate-limited" and "Renew" not in trouble.words


def test_a_token_is_good_until_the_moment_it_expires(tmp_path: Path) -> None:
    """And only for its own registration of the repository. Its row is deleted much later."""
    now = [1000.0]
    store = TokenStore(Database(tmp_path / "gitmirror.db"), lambda: now[0])
    secret = repo(7, "acme/secret", "https://h/acme/secret")
    issued = store.issue(secret, 60, "a note")
    assert re.fullmatch(r"gmt_[A-Za-z0-9_-]{43}", issued["token"]) and READ_TOKEN.fullmatch(issued["token"])
    now[0] = 1059.9
    assert store.find(issued["token"]) == (issued["id"], 7)
    assert store.find(issued["token"][:-1] + "~") is None
    now[0] = 1060.0
    assert store.find(issued["token"]) is None
    assert [(row["state"], row["note"]) for row in store.all()] == [("expired", "a note")]
    now[0] += KEPT + 1
    again = store.issue(secret, 60, "")
    assert [row["id"] for row in store.all("acme/secret")] == [again["id"]] != [issued["id"]]


def test_the_mark_goes_with_the_mirror(lab: Lab) -> None:
    """The mark moves with the mirror when the first clone is complete."""
    growing = Mirror(lab.layout.incoming("a/b"), lab.git)
    lab.run(growing.initialise("https://h/a/b"))
    growing.mark("https://h/a/b")
    growing.rename_to(lab.layout.mirror("a/b"))
    assert is_marked(lab.layout.mirror("a/b"))
