"""The plain data of the rooms: names, ref names as text, outcomes, and paths below the state directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.errors import GitmirrorError, NotServing, UsageError
from appliance.core.layout import Layout
from appliance.core.models import PushDecision, RefChange, RefreshOutcome, Repo
from appliance.core.names import is_repo_name, nearest_repos
from appliance.core.text import storable

ALLOWED = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")

PARTS = st.text(st.sampled_from([*sorted(ALLOWED), "/", " ", "\n", "é", "\0", "~"]), max_size=12)


@pytest.mark.parametrize(
    "name", ["a/b", "jomcgi/homelab", "A-1/b_2.c", ".github/.github", "a/...", "-a/-b", "a.git/b", "x/" + "y" * 128]
)
def test_names_of_the_contract_are_names(name: str) -> None:
    """Each part of `[A-Za-z0-9._-]`."""
    assert is_repo_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "a", "/", "a/", "/b", "a/b/c", "./b", "../b", "a/.", "a/..", "a b/c", "a/b\n", "a/b\0", "é/b", "a/b.git",
     "a/.git", "x/" + "y" * 129, "a\\b/c", "a/~", "a/b?"],
)  # fmt: skip
def test_everything_else_is_not(name: str) -> None:
    """Nothing that could leave the directory of mirrors, and nothing that `.git` on the wire would hide."""
    assert not is_repo_name(name)


@given(PARTS)
def test_a_name_never_leaves_the_directory_of_mirrors(name: str) -> None:
    """The rule stated once more, and what it is for: the path has exactly two parts below `mirrors`."""
    owner, slash, repo = name.partition("/")
    expected = (
        slash == "/"
        and bool(owner) and bool(repo)
        and set(owner) | set(repo) <= ALLOWED
        and owner not in (".", "..") and repo not in (".", "..")
        and not repo.endswith(".git")
    )  # fmt: skip
    assert is_repo_name(name) == expected
    if expected:
        path = Layout(Path("/state")).mirror(name)
        assert path.resolve().parent.parent == Path("/state/mirrors")


@given(st.binary(min_size=1, max_size=40))
def test_any_ref_name_can_be_shown_as_json(raw: bytes) -> None:
    """git allows any bytes in a ref's name, JSON does not; what is UTF-8 stays as it is."""
    name = storable(raw.decode("utf-8", "surrogateescape"))
    assert json.loads(json.dumps(name).encode("utf-8")) == name
    name.encode("utf-8")
    try:
        assert name == raw.decode("utf-8")
    except UnicodeDecodeError:
        assert "\\x" in name


def test_a_change_is_told_in_the_contracts_words() -> None:
    """None is a ref that is not there."""
    change = RefChange("refs/heads/caf\udce9", None, "1" * 40)
    assert change.document() == {"ref": "refs/heads/caf\\xe9", "old": None, "new": "1" * 40}


@pytest.mark.parametrize(
    ("moved", "error", "result"),
    [((), None, "unchanged"), ((RefChange("r", None, "1"),), None, "moved"), ((), "no route", "failed")],
)
def test_a_refresh_has_one_of_three_results(moved: tuple[RefChange, ...], error: str | None, result: str) -> None:
    """An error decides."""
    assert RefreshOutcome("a/b", 0, 1, moved, error).result == result


def test_one_refused_ref_refuses_the_push() -> None:
    """All or nothing."""
    repo = Repo(1, "a/b", "https://h/a/b", None, "cli", None, True, 0)
    assert PushDecision("p", repo, "10.0.0.7", ()).accepted
    assert not PushDecision("p", repo, "10.0.0.7", (), {"refs/heads/x": "no"}).accepted


def test_errors_carry_what_a_person_and_a_script_need() -> None:
    """Message, hint, and the exit codes of the contract."""
    assert (GitmirrorError("m").exit_code, UsageError("m").exit_code, NotServing("m").exit_code) == (1, 2, 4)
    error = GitmirrorError("what", hint="how", exit_code=3)
    assert (str(error), error.message, error.hint, error.exit_code) == ("what", "what", "how", 3)


def test_everything_is_below_the_state_directory_where_the_contract_says() -> None:
    """The names that the outside may rely on."""
    layout = Layout(Path("/s"))
    assert layout.database == Path("/s/gitmirror.db")
    assert layout.mirror("o/r") == Path("/s/mirrors/o/r.git")
    assert (layout.cache, layout.workspaces) == (Path("/s/cache"), Path("/s/workspaces"))
    assert layout.control_socket == Path("/s/control.sock")
    properties = [name for name, value in vars(Layout).items() if isinstance(value, property)]
    assert all(getattr(layout, name).is_relative_to("/s") for name in properties)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("homelab", ["acme/homelab", "other/homelab"]),
        ("Acme/Homelab", ["acme/homelab"]),
        ("https://github.com/acme/homelab.git", ["acme/homelab"]),
        ("acme/homelba", ["acme/homelab"]),
        ("wigets", ["acme/widgets"]),
        ("zzz", []),
        ("", []),
    ],
)
def test_which_repository_is_meant(given: str, meant: list[str]) -> None:
    """By its last part, in either case, as a URL, or spelt almost alike."""
    assert nearest_repos(given, ["acme/homelab", "acme/widgets", "other/homelab"]) == meant
