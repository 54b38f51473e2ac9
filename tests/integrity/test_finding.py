"""Damage to a mirror is found while it is served, shown to the operator, and healed without one."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.core.events.facts import MirrorHealed
from appliance.core.git.failures import MEANINGS, Kind
from appliance.core.models import Health, Repo, State
from appliance.core.observability.transitions import MOST_NAMED, condition_changed, losses_document
from appliance.core.process.error_output import MOST_BYTES, error_output
from tests.conftest import WIDGETS
from tests.integrity.nodes import OTHER, DamagedNode, damaged_node
from tests.recording.conftest import AGENTS
from tests.support.generate import add_commit
from tests.support.gitutil import fsck, git, git_result, refs, wait_until


@pytest.fixture
def node(tmp_path: Path) -> Iterator[DamagedNode]:
    """A running node whose mirrors have loose objects."""
    with damaged_node(tmp_path) as found:
        yield found


def blob_of(node: DamagedNode) -> str:
    """A blob of the tip of `main`."""
    return git("ls-tree", "-r", "main", cwd=node.mirror).split()[2]


def test_a_ref_that_vanished_is_found_after_a_refresh_and_put_back(node: DamagedNode) -> None:
    """The session's ref, lost without a word: the database knows its commit."""
    before = refs(node.mirror)
    node.lose_ref(f"{AGENTS}fix-dns")
    add_commit(node.upstream.path(WIDGETS), "main", {"more.txt": "more\n"})
    node.refresh()
    node.wait_for_word("the mirror is damaged")
    node.wait_for_word("the mirror is healed")
    after = refs(node.mirror)
    assert {ref: after.get(ref) for ref in before if ref.startswith(AGENTS)} == {f"{AGENTS}fix-dns": node.turns[1]}
    entry = node.serve.wait_for_repo(WIDGETS, "fresh")
    assert entry["damage"] is None
    assert node.status(OTHER)["state"] == "fresh"
    with urllib.request.urlopen(f"{node.serve.admin_url}/metrics", timeout=30) as page:
        metrics = page.read().decode()
    assert f'gitmirror_heals_total{{repo="{WIDGETS}",result="whole"}} 1.0' in metrics
    assert f'gitmirror_repo_state{{repo="{WIDGETS}",state="fresh"}} 1.0' in metrics


@pytest.mark.slow
def test_a_fetch_that_fails_makes_the_mirror_suspect(node: DamagedNode, tmp_path: Path) -> None:
    """A lost blob, and an upstream that is down: `damaged` until it is back, then whole. Others are not touched."""
    blob = blob_of(node)
    node.upstream.refuse()
    node.lose(blob)
    url = f"{node.serve.git_url}/{WIDGETS}"
    # A shape that no response was prepared for, so that git has to make it.
    assert git_result("clone", "-q", "--depth=3", url, str(tmp_path / "clone"))[0] != 0
    node.wait_for_word("git reports damage")
    entry = node.serve.wait_for_repo(WIDGETS, "damaged")
    assert entry["damage"]
    assert "heal REPO" in entry["hint"] and "purge" not in entry["hint"]
    shown = node.serve.cli("status", check=False)
    assert shown.returncode == 3
    assert "its mirror is damaged" in shown.stdout and "what to do" in shown.stdout
    assert node.serve.clone(tmp_path / "other", OTHER).exists()

    node.upstream.restore()
    healed = node.serve.cli_json("heal", WIDGETS)
    assert healed["whole"], healed
    assert node.status()["damage"] is None
    git("clone", "-q", "--depth=3", url, str(tmp_path / "again"))
    fsck(node.mirror)


@pytest.mark.slow
def test_branches_that_are_lost_are_back_without_waiting_for_the_interval(node: DamagedNode) -> None:
    """The database does not know them, so a refresh follows the heal. Until then the mirror is not served as empty."""
    git("pack-refs", "--all", cwd=node.mirror)
    (node.mirror / "packed-refs").unlink()
    healed = node.serve.cli_json("heal", WIDGETS)
    assert healed["whole"], healed
    url = f"{node.serve.git_url}/{WIDGETS}"
    upstream = refs(node.upstream.path(WIDGETS))["refs/heads/main"]
    wait_until(
        lambda: git_result("ls-remote", url, "refs/heads/main")[1].startswith(upstream), message="main is served"
    )


@pytest.mark.slow
@pytest.mark.parametrize("guest", ["v0 over git://", "v0 over HTTP", "push over git://", "push over HTTP"])
def test_what_git_says_to_nobody_is_heard(node: DamagedNode, tmp_path: Path, guest: str) -> None:
    """git daemon and receive-pack print it on stderr, and the guest alone sees that something failed."""
    node.upstream.refuse()
    place = f"{node.serve.http_url if guest.endswith('HTTP') else node.serve.git_url}/{WIDGETS}"
    if guest.startswith("push"):
        other = node.serve.clone(tmp_path / "other", OTHER)

        def fails() -> bool:
            """A look after the start may be quicker, and heal it; the next one comes in an hour."""
            git("pack-refs", "--all", cwd=node.mirror)
            packed = node.mirror / "packed-refs"
            packed.write_bytes(packed.read_bytes()[:-30])
            return git_result("push", "-q", place, f"HEAD:{AGENTS}new", cwd=other)[0] != 0

        wait_until(fails, message="a push finds it")
    else:
        node.lose(blob_of(node))
        code, _, _ = git_result("-c", "protocol.version=0", "clone", "-q", place, str(tmp_path / "clone"))
        assert code != 0
    node.wait_for_word("git reports damage")


@pytest.mark.slow
def test_the_damage_outlives_a_restart(node: DamagedNode) -> None:
    """`status` shows it without `serve`, too, and the next one heals it."""
    node.upstream.refuse()
    node.lose(blob_of(node))
    assert node.serve.cli("verify", WIDGETS, check=False).returncode == 3
    node.serve.terminate()
    assert (node.status()["state"], bool(node.status()["damage"])) == ("damaged", True)
    node.upstream.restore()
    node.serve.start()
    assert node.serve.wait_for_repo(WIDGETS, "fresh")["damage"] is None
    fsck(node.mirror)


def test_an_alert_about_losses_has_the_keys_of_every_alert() -> None:
    """It names what is lost up to a bound, and the state that the repository is in."""
    repo = Repo(1, WIDGETS, "https://example.com/acme/widgets", None, "cli", None, True, 0.0)
    lost = {f"refs/gitmirror/turns/{number}": f"{number:040x}" for number in range(1, MOST_NAMED + 6)}
    event = MirrorHealed(repo=repo, whole=False, done=(), lost=lost, evidence=None, damage="105 turns are lost")
    health = Health(cloned=True, verified_at=event.at, damage="105 turns are lost")
    document = losses_document(event, health, 60.0)
    usual = condition_changed("damaged", repo, health, State.DAMAGED, event.at, event.at).document()
    assert document.keys() == usual.keys()
    assert (document["event"], document["state"], document["error"]) == ("damaged", "damaged", "mirror")
    assert f"refs/gitmirror/turns/1 ({1:040x})" in document["words"] and document["words"].endswith("and 5 more")
    assert (usual["words"], usual["hint"]) == ("105 turns are lost", MEANINGS[Kind.MIRROR].hint)


def test_a_child_that_prints_without_end_neither_waits_nor_takes_memory() -> None:
    """Only the beginning of its error output is kept; one that prints nothing is not heard."""
    heard: list[str] = []
    program = "import sys\nfor n in range(200000): sys.stderr.write(f'error: line {n}\\n')"
    with error_output(heard.append) as errors:
        subprocess.run([sys.executable, "-c", program], stderr=errors, timeout=60)
        assert os.fstat(errors).st_size == MOST_BYTES
    assert len(heard) == 1
    assert heard[0].startswith("error: line 0\nerror: line 1\n") and len(heard[0]) <= MOST_BYTES
    with error_output(heard.append) as errors:
        subprocess.run(["true"], stderr=errors, check=True)
    assert len(heard) == 1
