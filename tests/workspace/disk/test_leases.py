"""What a platform gets when it leases a disk, and what it never gets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from appliance.core.errors import GitmirrorError, NotFound, TryLater, UsageError
from appliance.core.git import ref_traces
from appliance.core.store.disk_leases import UnknownLease
from appliance.core.workspace.disk import disks as disks_module
from appliance.core.workspace.disk import repository as repository_module
from appliance.core.workspace.disk.images import DiskForm
from appliance.core.workspace.disk.repository import NoDisk
from tests.support.gitutil import git
from tests.workspace.disk.leasing import (
    NAME,
    Bench,
    advance,
    branch_off,
    fails,
    paths,
    rewrite,
    tip,
    until,
)


def test_the_tip_of_the_followed_branch_is_built_and_leased(bench: Bench) -> None:
    """The document has the keys of the contract, and the drives are there."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        document = await bench.lease(repo, guest="vm-7")
        tree, data = paths(document)
        assert document | {"id": "", "created_at": "", "expires_at": ""} == {
            "id": "",
            "repo": NAME,
            "branch": "main",
            "commit": tip(repo),
            "form": "erofs",
            "guest": "vm-7",
            "drives": [
                {"path": str(tree), "readonly": True, "role": "tree"},
                {"path": str(data), "readonly": True, "role": "data"},
            ],
            "submodules": False,
            "missing": [],
            "mount": "mount -t erofs -o ro,device=/dev/vdc /dev/vdb MOUNTPOINT",
            "created_at": "",
            "expires_at": "",
        }
        assert tree.read_bytes().startswith(tip(repo).encode()) and data.exists()
        assert document["created_at"].endswith("Z") and document["created_at"] < document["expires_at"]
        assert await bench.disks.documents() == [document]

    bench.run(test)


@pytest.mark.parametrize(
    ("form", "mount"),
    [
        (DiskForm.SINGLE, "mount -t erofs -o ro /dev/vdb MOUNTPOINT"),
        (DiskForm.EXT4, "mount -t ext4 -o ro,noload /dev/vdb MOUNTPOINT"),
    ],
)
def test_forms_on_one_drive_say_how_they_are_mounted(bench: Bench, form: DiskForm, mount: str) -> None:
    """There is no second drive, and each form is an image of its own."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        document = await bench.lease(repo, form=form)
        assert (document["form"], document["mount"], len(document["drives"])) == (form, mount, 1)
        assert paths(await bench.lease(repo)) != paths(document)

    bench.run(test)


def test_guests_share_an_image_and_each_has_a_lease(bench: Bench) -> None:
    """One build for many requests at once, and none for those after it."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        documents = await asyncio.gather(*(bench.lease(repo, guest=f"vm-{number}") for number in range(5)))
        documents.append(await bench.lease(repo))
        assert len({document["id"] for document in documents}) == 6
        assert len({str(paths(document)) for document in documents}) == 1
        assert bench.builder.built("main") == [tip(repo)]

    bench.run(test)


def test_a_lease_outlives_a_restart_with_its_paths(bench: Bench) -> None:
    """The new `serve` lists it, and hands out the same image again."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        document = await bench.lease(repo)
        await bench.disks.stop()
        bench.make()
        await bench.disks.tidy()
        assert await bench.disks.documents() == [document]
        assert all(path.exists() for path in paths(document))
        assert paths(await bench.lease(repo)) == paths(document)

    bench.run(test)


def test_releasing(bench: Bench) -> None:
    """It returns the lease; once more is no error, and an id that nobody has is one."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        document = await bench.lease(repo)
        assert await bench.disks.release(document["id"]) == document
        assert await bench.disks.documents() == []
        assert await bench.disks.release(document["id"]) == document
        assert "0badcafe" in await fails(bench.disks.release("0badcafe"), UnknownLease)

    bench.run(test)


def test_a_branch_of_any_bytes(bench: Bench) -> None:
    """In documents its bytes are escaped; that name can be asked for, and is followed over a restart."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        git("update-ref", "refs/heads/caf\udce9", tip(repo), cwd=Path(repo.url))
        await bench.sync(repo)
        document = await bench.lease(repo, branch="caf\\xe9")
        assert document["branch"] == "caf\\xe9"
        await bench.disks.stop()
        advance(repo)
        moved = tip(repo)
        git("update-ref", "refs/heads/caf\udce9", moved, cwd=Path(repo.url))
        bench.make()
        await bench.sync(repo)
        await until(lambda: bench.builder.built("caf\udce9")[1:] == [moved])
        await bench.disks.tidy()
        assert (await bench.lease(repo, branch="caf\\xe9"))["commit"] == moved

    bench.run(test)


# -- which commit


def test_an_old_commit_of_a_branch_can_be_leased(bench: Bench) -> None:
    """Of the followed branch if that has it, else of any; one branch if it is named."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        first = tip(repo)
        advance(repo)
        side = branch_off(repo, "a-side")
        await bench.sync(repo)
        for asked, branch, found in [
            (first, None, "main"),
            (first.upper(), None, "main"),
            (first, "a-side", "a-side"),
            (side, None, "a-side"),
        ]:
            document = await bench.lease(repo, commit=asked, branch=branch)
            assert (document["branch"], document["commit"]) == (found, asked.lower())
            assert paths(document)[0].read_bytes().startswith(asked.lower().encode())
        message = await fails(bench.lease(repo, commit=side, branch="main"), NotFound)
        assert message == f"{side} is not on the branch main"

    bench.run(test)


@pytest.mark.parametrize("ref", ["refs/agents/fix-dns", "refs/gitmirror/anchors/x", "refs/tags/v1"])
def test_work_of_a_session_never_goes_into_a_disk(bench: Bench, ref: str) -> None:
    """Nor what only an anchor or a tag holds: the blob file is shared by all who may read upstream's branches."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        mirror = bench.lab.layout.mirror(repo.name)
        work = git("commit-tree", f"{tip(repo)}^{{tree}}", "-p", tip(repo), "-m", "work", cwd=mirror)
        git("update-ref", ref, work, cwd=mirror)
        assert work in await fails(bench.lease(repo, commit=work), NotFound)
        assert bench.builder.orders == []

    bench.run(test)


def test_what_is_no_commit_is_refused(bench: Bench) -> None:
    """An object of another kind, an unknown one, and what is no whole id."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        tree = git("rev-parse", "refs/heads/main^{tree}", cwd=Path(repo.url))
        for absent in (tree, "0" * 40, "f" * 40):
            assert f"{absent} is on no upstream branch" in await fails(bench.lease(repo, commit=absent), NotFound)
        for odd in (tip(repo)[:12], "main", "HEAD~1", "--all", "\n", ""):
            await fails(bench.lease(repo, commit=odd), UsageError)
        assert bench.builder.orders == []

    bench.run(test)


def test_what_cannot_be_leased_says_why(bench: Bench) -> None:
    """An unknown branch, a repository that was never cloned or is disabled, a time that is none."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        assert "was not cloned yet" in await fails(bench.lease(repo), NoDisk)
        await bench.sync(repo)
        assert "has no branch nope" in await fails(bench.lease(repo, branch="nope"), NotFound)
        # The name of a directory of branches is no branch.
        branch_off(repo, "feature/search")
        await bench.sync(repo)
        assert "has no branch feature" in await fails(bench.lease(repo, branch="feature"), NotFound)
        await fails(bench.lease(repo, ttl=0), UsageError)
        disabled = bench.lab.repo(repo.url)
        object.__setattr__(disabled, "enabled", False)
        assert "is disabled" in await fails(bench.lease(disabled), NoDisk)
        assert bench.builder.orders == [] and bench.leases.live() == []

    bench.run(test)


# -- never what upstream dropped


def test_a_dropped_commit_is_never_handed_out_again(bench: Bench) -> None:
    """Not as a commit and not as a tip; whoever has it keeps it until the lease ends."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        dropped = advance(repo)
        await bench.sync(repo)
        before = await bench.lease(repo)
        assert before["commit"] == dropped
        instead = rewrite(repo)
        await bench.sync(repo)
        assert dropped in await fails(bench.lease(repo, commit=dropped), NotFound)
        after = await bench.lease(repo)
        assert after["commit"] == instead
        assert not set(paths(before)) & set(paths(after))
        await bench.disks.tidy()
        assert all(path.exists() for path in paths(before))

    bench.run(test)


def test_an_older_generation_is_never_handed_out(bench: Bench) -> None:
    """Its blob file has what upstream dropped from another branch, so the same commit is built again in the new one."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        advance(repo)
        side = branch_off(repo, "side", "main~1")
        await bench.sync(repo)
        await bench.lease(repo)
        old = await bench.lease(repo, branch="side")
        rewrite(repo)
        await bench.sync(repo)
        new = await bench.lease(repo, branch="side")
        assert (old["commit"], new["commit"]) == (side, side)
        assert paths(old)[1] != paths(new)[1]

    bench.run(test)


@pytest.mark.parametrize("settled", [True, False], ids=["long after the last move", "just after the last move"])
def test_what_was_dropped_a_moment_ago_is_not_handed_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, settled: bool
) -> None:
    """A refresh has moved the refs, and nobody was told so yet: the blob file of another branch has the commit too."""
    if settled:
        monkeypatch.setattr(ref_traces, "SETTLED", 0)

    async def test(bench: Bench) -> None:
        repo = bench.add()
        advance(repo)
        branch_off(repo, "side", "main~1")
        await bench.sync(repo)
        await bench.lease(repo)
        old = await bench.lease(repo, branch="side")
        count = len(bench.builder.orders)
        assert paths(await bench.lease(repo, branch="side")) == paths(old)
        assert len(bench.builder.orders) == count
        rewrite(repo)
        await asyncio.to_thread(bench.lab.refresh, repo)
        new = await bench.lease(repo, branch="side")
        assert old["commit"] == new["commit"] and not set(paths(old)) & set(paths(new))

    bench.run(test)


def test_a_commit_that_is_dropped_while_it_is_built_is_not_handed_out(bench: Bench) -> None:
    """The request begins again with what upstream has now."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        dropped = advance(repo)
        await bench.sync(repo)
        bench.builder.gate = asyncio.Event()
        asked = asyncio.create_task(bench.lease(repo))
        await until(lambda: bench.builder.built("main") == [dropped])
        instead = rewrite(repo)
        await bench.sync(repo)
        bench.builder.gate.set()
        document = await asked
        assert document["commit"] == instead
        assert [lease.commit for lease in bench.leases.live()] == [instead]

    bench.run(test)


@pytest.mark.parametrize("changed", ["private", "history"])
def test_another_visibility_or_history_is_another_image(bench: Bench, changed: str) -> None:
    """A setting holds from the next request on."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        open_one = await bench.lease(repo)
        if changed == "private":
            bench.private = True
        else:
            bench.settings = type(bench.settings)(disk_history="tip")
        other = await bench.lease(repo)
        assert paths(other)[1] != paths(open_one)[1]
        order = bench.builder.orders[-1]
        assert (order.visibility, order.history) == (("private", "full") if changed == "private" else ("open", "tip"))

    bench.run(test)


def test_another_upstream_of_the_same_name_shares_nothing(bench: Bench) -> None:
    """The leases of the repository that was removed last until they end, beside those of the new one."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        before = await bench.lease(repo)
        bench.disks.forget(repo)
        bench.repos = []
        await bench.disks.tidy()
        assert await bench.disks.documents() == [before]
        await asyncio.to_thread(bench.lab.mirror(NAME).discard)
        other = bench.add(repo_id=2)
        await bench.sync(other)
        after = await bench.lease(other)
        await bench.disks.tidy()
        # Even of the same commit.
        assert after["commit"] == tip(other) == before["commit"]
        assert not set(paths(before)) & set(paths(after))
        assert all(path.exists() for path in (*paths(before), *paths(after)))
        assert {document["id"] for document in await bench.disks.documents()} == {before["id"], after["id"]}

    bench.run(test)


# -- builds


def test_a_request_waits_for_a_bounded_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it says that the disk is being built, and the next request gets it."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        bench.builder.gate = asyncio.Event()
        monkeypatch.setattr(disks_module, "DEMAND_WAIT", 0.05)
        with pytest.raises(TryLater, match="the disk of main is being built") as caught:
            await bench.lease(repo)
        assert "try again" in caught.value.hint
        bench.builder.gate.set()
        monkeypatch.setattr(disks_module, "DEMAND_WAIT", 30.0)
        await bench.lease(repo)
        assert bench.builder.built("main") == [tip(repo)]

    bench.run(test)


def test_a_client_that_hangs_up_does_not_stop_the_build(bench: Bench) -> None:
    """Another may wait for the same one."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        bench.builder.gate = asyncio.Event()
        gone, waiting = asyncio.create_task(bench.lease(repo)), asyncio.create_task(bench.lease(repo))
        await until(lambda: bench.builder.running)
        gone.cancel()
        bench.builder.gate.set()
        assert (await waiting)["commit"] == tip(repo)
        assert len(bench.leases.live()) == 1

    bench.run(test)


def test_nothing_is_built_for_clients_that_have_gone(bench: Bench) -> None:
    """What they asked for is skipped when its turn comes, and whoever asks for it again gets it."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        commits = [tip(repo), *(advance(repo, text=f"{number}\n") for number in range(6))]
        await bench.sync(repo)
        bench.builder.gate = asyncio.Event()
        first = asyncio.create_task(bench.lease(repo))
        await until(lambda: bench.builder.running)
        gone = [asyncio.create_task(bench.lease(repo, commit=commit)) for commit in commits[:-1]]
        known = bench.disks._repository(repo.name)
        await until(lambda: len(known._builds) == len(commits))
        for each in gone:
            each.cancel()
        await asyncio.wait(gone)
        last = asyncio.create_task(bench.lease(repo, form=DiskForm.EXT4))
        await until(lambda: len(known._builds) == len(commits) + 1)
        bench.builder.gate.set()
        await asyncio.gather(first, last)
        await until(lambda: not known._builds)
        assert bench.builder.built("main") == [commits[-1]] * 2
        assert (await bench.lease(repo, commit=commits[0]))["commit"] == commits[0]

    bench.run(test)


def test_a_client_that_was_told_to_try_again_keeps_its_turn(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was promised that the build goes on; one that does not come back is forgotten after a while."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        first = tip(repo)
        second = advance(repo)
        advance(repo)
        await bench.sync(repo)
        bench.builder.gate = asyncio.Event()
        running = asyncio.create_task(bench.lease(repo))
        await until(lambda: bench.builder.running)
        monkeypatch.setattr(disks_module, "DEMAND_WAIT", 0.05)
        await fails(bench.lease(repo, commit=first), TryLater)
        monkeypatch.setattr(repository_module, "COME_BACK", 0.0)
        await fails(bench.lease(repo, commit=second), TryLater)
        bench.builder.gate.set()
        await running
        known = bench.disks._repository(repo.name)
        await until(lambda: not known._builds)
        assert bench.builder.built("main") == [tip(repo), first]

    bench.run(test)


def test_tips_go_before_older_commits(bench: Bench) -> None:
    """Most guests want those; the others keep their order."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        old = [tip(repo), advance(repo, text="1\n"), advance(repo, text="2\n")]
        advance(repo)
        side = branch_off(repo, "side")
        await bench.sync(repo)
        bench.builder.gate = asyncio.Event()
        known = bench.disks._repository(repo.name)
        asked = []
        for wanted in ({}, *({"commit": commit} for commit in old), {"branch": "side"}):
            asked.append(asyncio.create_task(bench.lease(repo, **wanted)))
            await until(lambda: len(known._builds) == len(asked))
        bench.builder.gate.set()
        await asyncio.gather(*asked)
        assert [order.commit for order in bench.builder.orders] == [tip(repo), side, *old]

    bench.run(test)


def test_one_build_at_a_time_for_a_repository_and_two_over_all(bench: Bench) -> None:
    """Others wait for their turn, and all get theirs."""

    async def test(bench: Bench) -> None:
        repos = [bench.add(f"acme/r{number}", repo_id=number) for number in range(1, 4)]
        for repo in repos:
            branch_off(repo, "side")
            await bench.sync(repo)
        bench.builder.gate = asyncio.Event()
        asked = [asyncio.create_task(bench.lease(repo, branch=name)) for repo in repos for name in ("main", "side")]
        await until(lambda: bench.builder.running == 2)
        # Whatever else can run has run by now.
        for _ in range(100):
            await asyncio.sleep(0)
        assert len({order.repo for order in bench.builder.orders}) == len(bench.builder.orders) == 2
        bench.builder.gate.set()
        await asyncio.gather(*asked)
        assert (bench.builder.most, len(bench.builder.orders)) == (2, 6)

    bench.run(test)


def test_what_is_there_is_leased_while_something_else_is_built(bench: Bench) -> None:
    """A long build of one branch holds up nobody who wants another."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        branch_off(repo, "side")
        await bench.sync(repo)
        await bench.lease(repo)
        bench.builder.gate = asyncio.Event()
        asked = asyncio.create_task(bench.lease(repo, branch="side"))
        await until(lambda: bench.builder.running)
        assert (await bench.lease(repo))["branch"] == "main"
        assert not asked.done()
        bench.builder.gate.set()
        await asked

    bench.run(test)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (GitmirrorError("the drive cannot be written: No space left on device"), "No space left"),
        (OSError(28, "No space left on device", "/state/disks/x"), "the disk of main cannot be used: No space left"),
    ],
)
def test_a_failed_build_is_said_and_tried_again(
    bench: Bench, caplog: pytest.LogCaptureFixture, error: Exception, words: str
) -> None:
    """The error stays with that request; the log has its cause once, and no caller sees a path."""

    async def test(bench: Bench) -> None:
        repo, other = bench.add(), bench.add("acme/other", repo_id=2)
        await bench.sync(repo)
        await bench.sync(other)
        bench.builder.error = error
        for _ in range(2):
            said = await fails(bench.lease(repo), GitmirrorError)
            assert words in said and "/state" not in said
        assert len([each for each in caplog.records if "the erofs disk of main failed" in each.getMessage()]) == 1
        bench.builder.error = None
        assert (await bench.lease(other))["repo"] == "acme/other"
        assert (await bench.lease(repo))["commit"] == tip(repo)

    bench.run(test)


def test_drives_that_changed_on_disk_are_built_again(bench: Bench) -> None:
    """Unless somebody has them: then a request says so, and nothing under that guest is replaced."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        first = await bench.lease(repo)
        tree = paths(first)[0]
        tree.write_bytes(b"short")
        assert "were changed on disk" in await fails(bench.lease(repo), NoDisk)
        assert tree.read_bytes() == b"short"
        await bench.disks.release(first["id"])
        second = await bench.lease(repo)
        assert paths(second)[0].read_bytes().startswith(tip(repo).encode())
        paths(second)[0].unlink()
        await bench.disks.release(second["id"])
        assert paths(await bench.lease(repo))[0].exists()

    bench.run(test)


def test_a_repository_that_is_removed_while_its_disk_is_built(bench: Bench) -> None:
    """The build ends, the request says why, and nobody has a lease."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        bench.builder.gate = asyncio.Event()
        asked = asyncio.create_task(bench.lease(repo))
        await until(lambda: bench.builder.running)
        bench.disks.forget(repo)
        assert "no longer served" in await fails(asked, NoDisk)
        assert bench.builder.running == 0 and bench.leases.live() == []
        await bench.disks.delete(repo.name)
        assert not bench.place(repo).directory.exists()

    bench.run(test)


def test_a_build_that_waits_for_its_turn_can_be_ended(bench: Bench) -> None:
    """Stopping does not wait for what has not begun."""

    async def test(bench: Bench) -> None:
        repo, other = bench.add(), bench.add("acme/other", repo_id=2)
        branch_off(repo, "side")
        await bench.sync(repo)
        await bench.sync(other)
        bench.builder.gate = asyncio.Event()
        asked = [asyncio.create_task(bench.lease(repo))]
        await until(lambda: bench.builder.running == 1)
        # The second waits for the first; when the third has begun, it was asked for long ago.
        asked += [asyncio.create_task(bench.lease(each, branch=name)) for each, name in ((repo, "side"), (other, None))]
        await until(lambda: bench.builder.running == 2)
        await bench.disks.stop()
        for each in asked:
            assert "no longer served" in await fails(each, NoDisk)
        assert len(bench.builder.orders) == 2 and bench.builder.running == 0

    bench.run(test)


def test_nothing_is_built_for_a_request_that_was_looking_for_its_commit(bench: Bench) -> None:
    """When the repository goes, git is still asked for the tip; the build would go on after the end."""

    async def test(bench: Bench) -> None:
        repo = bench.add()
        await bench.sync(repo)
        asked = asyncio.create_task(bench.lease(repo))
        await asyncio.sleep(0)
        bench.disks.forget(repo)
        assert "no longer served" in await fails(asked, NoDisk)
        assert bench.builder.orders == []

    bench.run(test)
