"""Which submodules of a commit are found here, and that a hostile `.gitmodules` finds nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.core.git.gitmodules import MOST_BYTES, Refused, parse_entries, resolve_url
from appliance.core.workspace.submodules import MOST_DEPTH, MOST_SUBMODULES, Lack
from tests.git.lab import Lab
from tests.support.gitutil import git
from tests.workspace.submodule_lab import HOST, SubmoduleLab, section


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[SubmoduleLab]:
    base = Lab(tmp_path / "state")
    yield SubmoduleLab(base, tmp_path / "mirrors")
    base.close()


def test_finds_nested_ones_by_relative_and_absolute_urls(lab: SubmoduleLab) -> None:
    for name in ("acme/app", "acme/lib", "other/leaf"):
        lab.create(name)
    leaf = lab.commit("other/leaf")
    lib = lab.commit("acme/lib", section("leaf", "deep/leaf", "../../other/leaf.git"), {"deep/leaf": leaf})
    app = lab.commit(
        "acme/app",
        section("my lib", "libs/x", "../lib") + section("w", "w", f"{HOST}/Other/leaf/"),
        {"libs/x": lib, "w": leaf},
    )
    found, missing = lab.resolve("acme/app", app)
    assert not missing
    assert [(each.path, each.git, each.url, each.commit, each.repo.name) for each in found] == [
        ("libs/x", ".git/modules/my lib", f"{HOST}/acme/lib", lib, "acme/lib"),
        ("libs/x/deep/leaf", ".git/modules/my lib/modules/leaf", f"{HOST}/other/leaf.git", leaf, "other/leaf"),
        ("w", ".git/modules/w", f"{HOST}/Other/leaf/", leaf, "other/leaf"),
    ]


@pytest.mark.parametrize(
    "url",
    ["git@github.com:acme/lib.git", "ssh://git@github.com/acme/lib", "git://github.com/acme/lib", f"{HOST}/acme/lib/"],
)
def test_the_protocol_does_not_matter(lab: SubmoduleLab, url: str) -> None:
    lab.create("acme/app"), lab.create("acme/lib")
    lib = lab.commit("acme/lib")
    [found], _ = lab.resolve("acme/app", lab.commit("acme/app", section("x", "x", url), {"x": lib}))
    assert (found.url, found.repo.name) == (url, "acme/lib")


def test_says_what_is_missing_and_why(lab: SubmoduleLab) -> None:
    for name in ("acme/app", "acme/lib", "acme/secret"):
        lab.create(name)
    lab.commit("acme/lib")
    secret, gone = lab.commit("acme/secret"), "1" * 40
    lab.unreadable = {"acme/secret"}
    text = "".join(section(name, name, f"../{name}") for name in ("lib", "none", "secret"))
    app = lab.commit("acme/app", text, {"lib": gone, "none": gone, "secret": secret})
    found, missing = lab.resolve("acme/app", app)
    assert not found
    assert [(each.path, each.url, each.commit, each.reason) for each in missing] == [
        ("lib", f"{HOST}/acme/lib", gone, Lack.NO_COMMIT),
        ("none", f"{HOST}/acme/none", gone, Lack.NOT_MIRRORED),
        ("secret", f"{HOST}/acme/secret", secret, Lack.NOT_ALLOWED),
    ]


def test_another_registration_of_the_same_upstream_may_have_the_commit(lab: SubmoduleLab) -> None:
    lab.create("acme/app"), lab.create("acme/lib"), lab.create("acme/lib-by-ssh", "git@github.com:acme/lib")
    lab.commit("acme/lib")
    only_there = lab.commit("acme/lib-by-ssh", None, None, other="x")
    [found], _ = lab.resolve("acme/app", lab.commit("acme/app", section("x", "x", "../lib"), {"x": only_there}))
    assert found.repo.name == "acme/lib-by-ssh"


def test_a_submodule_that_is_never_updated_and_a_path_without_a_gitlink_are_nothing(lab: SubmoduleLab) -> None:
    lab.create("acme/app"), lab.create("acme/lib")
    lib = lab.commit("acme/lib")
    text = section("x", "x", "../lib", "\tupdate = none\n") + section("y", "README", "../lib")
    assert lab.resolve("acme/app", lab.commit("acme/app", text, {"x": lib})) == ([], [])


def test_a_submodule_keeps_how_it_is_updated(lab: SubmoduleLab) -> None:
    lab.create("acme/app"), lab.create("acme/lib")
    text = section("x", "x", "../lib", "\tupdate = rebase\n")
    [found], _ = lab.resolve("acme/app", lab.commit("acme/app", text, {"x": lab.commit("acme/lib")}))
    assert found.update == "rebase"


HOSTILE = {
    "a helper": section("x", "x", "ext::sh -c touch% /tmp/owned"),
    "a file": section("x", "x", "file:///srv/lib"),
    "a path": section("x", "x", "/srv/lib"),
    "an option": section("x", "x", "-u./payload"),
    "an option of ssh": section("x", "x", "ssh://-oProxyCommand=touch/lib"),
    "an option of ssh, scp form": section("x", "x", "-oProxyCommand=touch:lib"),
    "a newline": section("x", "x", '"https://github.com/acme/lib\\nhost=evil"'),
    "a newline, encoded": section("x", "x", "https://github.com/acme/lib%0ahost=evil"),
    "out of the host": section("x", "x", "../../../../../../srv/lib"),
    "the host gone": section("x", "x", "../../../:evil/acme/lib"),
    "no url": '[submodule "x"]\n\tpath = x\n',
    "out of modules": section("../../hooks", "x", "../lib"),
    "out of modules, as Windows reads it": section("..\\\\..\\\\hooks", "x", "../lib"),
    "an absolute name": section("/etc", "x", "../lib"),
    "no name": section("", "x", "../lib"),
    "a long name": section("n" * 300, "x", "../lib"),
    "a command": section("x", "x", "../lib", "\tupdate = !touch /tmp/owned\n"),
    "its own way": section("x", "x", "../lib", "\tupdate = whatever\n"),
    "no config": "[submodule",
    "a path out of the tree": section("x", "../x", "../lib"),
    "an absolute path": section("x", "/x", "../lib"),
    "an option as path": section("x", "-x", "../lib"),
    "a repository as path": section("x", ".GIT/hooks", "../lib"),
    "a short name as path": section("x", "git~1/x", "../lib"),
    "the same path twice": section("x", "x", "../lib") + section("y", "x", "../lib"),
    "large": "#" * MOST_BYTES + "\n" + section("x", "x", "../lib"),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_gitmodules_finds_nothing(lab: SubmoduleLab, text: str) -> None:
    lab.create("acme/app"), lab.create("acme/lib"), lab.create("evil/lib", "/srv/lib")
    lib = lab.commit("acme/lib")
    lab.mirror("evil/lib").path.rename(lab.mirror("evil/lib").path.with_name("gone"))
    lab.mirror("acme/lib").path.parent.joinpath("link").symlink_to("lib.git")
    lab.mirror("evil/lib").path.symlink_to(lab.mirror("acme/lib").path)
    found, missing = lab.resolve("acme/app", lab.commit("acme/app", text, {"x": lib}))
    assert not found
    assert {each.reason for each in missing} <= {Lack.HOSTILE, Lack.NOT_MIRRORED} and missing


def test_one_repository_inside_another_is_refused(lab: SubmoduleLab) -> None:
    lab.create("acme/app"), lab.create("acme/lib")
    lib = lab.commit("acme/lib")
    text = section("x", "x", "../lib") + section("X/hooks", "y", "../lib")
    found, [missing] = lab.resolve("acme/app", lab.commit("acme/app", text, {"x": lib, "y": lib}))
    assert [each.path for each in found] == ["x"] and missing.path == "y" and missing.reason is Lack.HOSTILE


def test_a_path_like_a_link_in_another_case_is_refused(lab: SubmoduleLab) -> None:
    lab.create("acme/app"), lab.create("acme/lib")
    lib = lab.commit("acme/lib")
    app = lab.commit("acme/app", section("x", "A/modules/x", "../lib"), {"A/modules/x": lib}, a="a link")
    found, [missing] = lab.resolve("acme/app", app)
    assert not found and "case" in missing.details


def test_files_of_the_node_are_not_included(lab: SubmoduleLab, tmp_path: Path) -> None:
    lab.create("acme/app"), lab.create("acme/lib")
    (tmp_path / "inside").write_text(section("x", "x", "../lib"))
    lib = lab.commit("acme/lib")
    app = lab.commit("acme/app", f"[include]\n\tpath = {tmp_path / 'inside'}\n", {"x": lib})
    assert lab.resolve("acme/app", app) == ([], [])


def test_a_link_as_gitmodules_is_refused(lab: SubmoduleLab) -> None:
    lab.create("acme/app")
    bare = lab.mirror("acme/app").path
    blob = git("hash-object", "-w", "--stdin", cwd=bare, input="/etc/passwd")
    # `git update-index` would not write such a tree.
    tree = git("mktree", cwd=bare, input=f"120000 blob {blob}\t.gitmodules\n")
    found, [missing] = lab.resolve("acme/app", git("commit-tree", "-m", "link", tree, cwd=bare))
    assert not found and missing.reason is Lack.HOSTILE


@pytest.mark.slow
def test_repositories_that_contain_each_other_end(lab: SubmoduleLab) -> None:
    names = [f"acme/{letter}" for letter in "abcde"]
    for name in names:
        lab.create(name)
    commit = lab.commit(names[0])
    for turn in range(1, 16):
        inner, outer = names[(turn - 1) % 5], names[turn % 5]
        commit = lab.commit(outer, section("x", "x", f"../{inner[-1]}"), {"x": commit})
    found, [missing] = lab.resolve(names[0], commit)
    assert len(found) == MOST_DEPTH and missing.reason is Lack.TOO_DEEP


@pytest.mark.slow
def test_two_at_each_level_end(lab: SubmoduleLab) -> None:
    for letter in "abcdefgh":
        lab.create(f"acme/{letter}")
    commit = lab.commit("acme/a")
    for inner, outer in zip("abcdefg", "bcdefgh", strict=True):
        text = "".join(section(f"{n}", f"{n}", f"../{inner}") for n in range(4))
        commit = lab.commit(f"acme/{outer}", text, dict.fromkeys("0123", commit))
    found, missing = lab.resolve("acme/h", commit)
    assert len(found) <= MOST_SUBMODULES and {each.reason for each in missing} == {Lack.TOO_MANY}


@pytest.mark.parametrize(
    "base,url,resolved",
    [
        ("https://h/a/b", "../c", "https://h/a/c"),
        ("https://h/a/b.git/", "../../x/c/", "https://h/x/c"),
        ("https://h/a/b", "./c", "https://h/a/b/c"),
        ("git@h:a/b", "../c", "git@h:a/c"),
        ("git@h:b", "../c", "git@h:c"),
        ("git@h:a/b", "../../c", "git@h:c"),
        ("/srv/a/b", "../c", "/srv/a/c"),
        ("https://h/a/b", "../../../other/a", "https://other/a"),
    ],
)
def test_relative_urls_are_those_of_git(tmp_path: Path, base: str, url: str, resolved: str) -> None:
    assert resolve_url(base, url) == resolved
    git("init", "-q", ".", cwd=tmp_path)
    git("config", "remote.origin.url", base, cwd=tmp_path)
    (tmp_path / ".gitmodules").write_text(section("x", "x", url))
    git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},x", cwd=tmp_path)
    git("submodule", "init", cwd=tmp_path)
    assert git("config", "submodule.x.url", cwd=tmp_path) == resolved


def test_a_url_that_leads_out_of_its_host_is_refused() -> None:
    for url in ("../../../../../c", "../../..//c", "../../../:c"):
        with pytest.raises(Refused):
            resolve_url("https://h/a/b", url)


def test_the_last_of_equal_keys_counts() -> None:
    [entry] = parse_entries(b"submodule.a.b.path\np\0submodule.a.b.url\nu\0submodule.a.b.url\nv\0submodule.a.b.fetch\0")
    assert (entry.name, entry.path, entry.url) == ("a.b", "p", "v")
