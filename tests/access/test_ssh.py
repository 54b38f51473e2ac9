"""ssh upstreams: a real sshd on the loopback, one key, one pinned host key, and nothing else of the machine."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ServeFactory
from tests.refresh.node import repo_status
from tests.support.generate import add_commit, copy_repository
from tests.support.gitutil import kill_group, refs, run_process, wait_until
from tests.support.ports import hold_port, port_of
from tests.support.serve import Serve
from tests.workspace.web import get

SECRET = "acme/secret"
QUICK = {"interval": "1s", "timeout": "30s"}


@dataclass(frozen=True)
class Sshd:
    """A server that accepts `key`, its `known_hosts`, and the repositories below `root`."""

    root: Path
    port: int
    key: Path
    known_hosts: Path

    @property
    def url(self) -> str:
        """Of `SECRET`."""
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{self.root}/{SECRET}"

    def entry(self, **more: object) -> dict[str, str]:
        """`[[credentials]]` for all of it."""
        keys = {"url": f"ssh://127.0.0.1:{self.port}", "ssh_key": self.key, "known_hosts": self.known_hosts}
        return {name: str(value) for name, value in {**keys, **more}.items()}


def make_key(path: Path) -> Path:
    done = run_process(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)])
    assert done.returncode == 0, done.stderr
    return path


def pin(path: Path, port: int, host_key: Path) -> Path:
    kind, key, *_ = host_key.with_suffix(".pub").read_text().split()
    path.write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    return path


@pytest.fixture
def sshd(tmp_path: Path, generated_bare: Path) -> Iterator[Sshd]:
    """A running sshd. Skips where there is none, or it does not start for this user."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None or shutil.which("ssh") is None:
        pytest.skip("no sshd and ssh on this machine (openssh-server, openssh-client)")
    place = tmp_path / "ssh d"
    place.mkdir()
    host_key, key = make_key(place / "host"), make_key(place / "key")
    shutil.copy(place / "key.pub", place / "authorized")
    root = tmp_path / "git"
    copy_repository(generated_bare, (root / SECRET).with_suffix(".git"))
    (root / SECRET).symlink_to("secret.git")
    holder = hold_port()
    port = port_of(holder)
    config = place / "config"
    config.write_text(
        f'Port {port}\nListenAddress 127.0.0.1\nHostKey "{host_key}"\nAuthorizedKeysFile "{place}/authorized"\n'
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPidFile none\nPermitRootLogin prohibit-password\n"
        "AuthenticationMethods publickey\n"
    )
    if os.geteuid() == 0:
        # What its init script does: root's sshd does not start without.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    log = (place / "log").open("wb")
    process = subprocess.Popen([program, "-D", "-e", "-f", str(config)], stderr=log, start_new_session=True)
    try:
        said = place / "log"
        wait_until(lambda: process.poll() is not None or b"listening on" in said.read_bytes(), message="sshd listens")
        if process.poll() is not None:
            pytest.skip(f"sshd does not start: {said.read_text().strip()}")
        yield Sshd(root, port, key, pin(place / "known hosts", port, host_key))
    finally:
        kill_group(process)
        holder.close()
        log.close()


def last_error(serve: Serve) -> str:
    return str(repo_status(serve, SECRET)["last_error"])


@pytest.mark.slow
def test_an_ssh_upstream_is_mirrored_with_its_key(sshd: Sshd, serve_factory: ServeFactory, tmp_path: Path) -> None:
    """It is refreshed, private, and found with the host in its path too. Without an entry, the error has the remedy."""
    serve = serve_factory(refresh=QUICK).start()
    refused = serve.cli("add-repo", sshd.url, check=False)
    assert refused.returncode == 2
    assert "[[credentials]]" in refused.stderr and "ssh_key and known_hosts" in refused.stderr
    assert serve.cli_json("repos") == []
    serve.configure(refresh=QUICK, credentials=[sshd.entry()])
    serve.reload()
    wait_until(lambda: serve.cli("add-repo", sshd.url, check=False).returncode == 0, message="it may be added")
    tip = add_commit(sshd.root / f"{SECRET}.git", "main", {"x": "1\n"})
    serve.wait_for_ref(SECRET, "refs/heads/main", tip)
    assert repo_status(serve, SECRET)["private"] is True
    path = f"/127.0.0.1:{sshd.port}{sshd.root}/{SECRET}/freshness"
    assert get(f"{serve.http_url}{path}").status == 404
    token = serve.cli_json("token", "issue", "--repo", SECRET)["token"]
    assert get(f"{serve.http_url}{path}", authorization=f"Bearer {token}").status == 200
    # Without its entry it is neither refreshed nor served: an ssh upstream is never open by itself.
    serve.configure(refresh=QUICK)
    serve.reload()
    wait_until(lambda: "no [[credentials]] entry has a key" in last_error(serve), message="the entry is missed")
    assert repo_status(serve, SECRET)["readers"] == "token"
    assert get(f"{serve.http_url}/{SECRET}/freshness").status == 404


@pytest.mark.slow
def test_no_other_key_is_tried(sshd: Sshd, serve_factory: ServeFactory, tmp_path: Path) -> None:
    """A wrong key in the entry is refused until replaced, even if an agent in the environment has the right one."""
    agent = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(agent)], stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_until(agent.exists, message="the agent listens")
        env = {"SSH_AUTH_SOCK": str(agent), "GIT_SSH_COMMAND": f"ssh -i '{sshd.key}'"}
        assert run_process(["ssh-add", "-q", str(sshd.key)], env={**os.environ, **env}).returncode == 0
        wrong = make_key(tmp_path / "wrong")
        entry = sshd.entry(ssh_key=wrong)
        serve = serve_factory(repos=[{"url": sshd.url, "name": SECRET}], refresh=QUICK, credentials=[entry], env=env)
        serve.start()
        serve.wait_for_repo(SECRET, "failing")
        assert "refused the credential" in last_error(serve) and str(wrong) in last_error(serve)
        # A public half beside it that is not its own would be what ssh offers.
        wrong.with_suffix(".pub").unlink()
        shutil.copy(sshd.key, tmp_path / "new")
        (tmp_path / "new").rename(wrong)
        serve.wait_for_repo(SECRET)
        assert refs(serve.mirror(SECRET))
    finally:
        kill_group(process)


@pytest.mark.slow
def test_a_host_key_that_is_not_pinned_is_refused(sshd: Sshd, serve_factory: ServeFactory, tmp_path: Path) -> None:
    """A changed key, an unknown host and a missing file are each reported as such. Mending the file is enough."""
    pinned = sshd.known_hosts.read_text()
    pin(sshd.known_hosts, sshd.port, make_key(tmp_path / "other"))
    serve = serve_factory(repos=[{"url": sshd.url, "name": SECRET}], refresh=QUICK, credentials=[sshd.entry()]).start()
    serve.wait_for_repo(SECRET, "failing")
    assert "host key is not the one in" in last_error(serve)
    sshd.known_hosts.write_text("elsewhere.example ssh-ed25519 AAAA\n")
    wait_until(lambda: "host key is not the one in" in last_error(serve), message="an unknown host")
    sshd.known_hosts.unlink()
    wait_until(lambda: "known_hosts cannot be read" in last_error(serve), message="no file")
    sshd.known_hosts.write_text(pinned)
    serve.wait_for_repo(SECRET)
    sshd.key.chmod(0o640)
    wait_until(lambda: "is open to other users (mode 0640)" in last_error(serve), message="an open key", interval=0.1)
