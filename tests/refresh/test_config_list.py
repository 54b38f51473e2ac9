"""The config's `[[repos]]`: the same table as add-repo's, reconciled at start and on SIGHUP."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.conftest import WIDGETS, ServeFactory
from tests.git.lab import followed
from tests.refresh.node import repo_status
from tests.support.generate import add_commit
from tests.support.gitutil import git_result, refs, remote_refs, wait_until
from tests.support.serve import Serve, Value
from tests.support.upstream import HttpUpstream

QUIET: Mapping[str, Value] = {"interval": "1h", "stale_after": "2h", "timeout": "30s"}
OTHER = "acme/other"

Repos = Sequence[str | Mapping[str, Value]]


@pytest.fixture
def two(upstream: HttpUpstream, generated_bare: Path) -> HttpUpstream:
    """An upstream with two repositories."""
    upstream.add(OTHER, generated_bare)
    return upstream


def listed(serve: Serve) -> dict[str, tuple[str, bool]]:
    """Return source and `enabled` of every repository by name."""
    return {entry["name"]: (entry["source"], entry["enabled"]) for entry in json.loads(serve.here("repos", "--json"))}


def reconfigure(serve: Serve, repos: Repos, **refresh: Value) -> None:
    """Write the config anew and have it read: by SIGHUP when serve runs, else the next command does."""
    serve.configure(repos, refresh={**QUIET, **refresh})
    if serve.running:
        _reload(serve, "the configuration was read again")


def _reload(serve: Serve, answer: str) -> None:
    before = serve.log().count(answer)
    serve.reload()
    wait_until(lambda: serve.log().count(answer) > before, message=f"serve says: {answer}")


@pytest.fixture(params=["serving", "alone"])
def configured(request: pytest.FixtureRequest, serve_factory: ServeFactory, two: HttpUpstream) -> Serve:
    """A state directory whose config lists `acme/widgets`, once with and once without a running serve."""
    serve = serve_factory(repos=[two.url(WIDGETS)], refresh=QUIET)
    if request.param == "serving":
        serve.start()
        serve.wait_for_repo(WIDGETS)
    else:
        # Reading makes nothing, so a command that may make the state directory puts the list into the database.
        serve.cli("enable", WIDGETS)
    return serve


def test_config_and_command_line_fill_one_table(configured: Serve, two: HttpUpstream) -> None:
    """Side by side, each with its source; adding what is listed already changes nothing."""
    configured.cli("add-repo", two.url(OTHER))
    configured.cli("add-repo", two.url(WIDGETS))
    assert listed(configured) == {OTHER: ("cli", True), WIDGETS: ("config", True)}
    assert followed(configured.mirror(WIDGETS)) == refs(two.path(WIDGETS))


@pytest.mark.slow
def test_a_listed_repository_is_changed_in_its_file(configured: Serve, two: HttpUpstream) -> None:
    """Removing it, or changing its options by command, exits 2 and names the file."""
    for command in (
        ["remove-repo", WIDGETS],
        ["remove-repo", WIDGETS, "--purge", "--yes"],
        ["add-repo", two.url(WIDGETS), "--interval", "5s"],
        ["add-repo", two.url(WIDGETS), "--branch", "develop"],
    ):
        done = configured.cli(*command, check=False)
        assert done.returncode == 2 and "config" in done.stderr, done.stderr
        if command[0] == "remove-repo":
            assert str(configured.config) in done.stderr
    assert listed(configured) == {WIDGETS: ("config", True)}
    assert configured.cli_json("repos")[0]["interval"] == 3600


def test_dropped_from_the_config_is_disabled_and_kept_and_back_is_enabled(configured: Serve, two: HttpUpstream) -> None:
    """Nothing is deleted by an edit; what comes back goes on where it was."""
    configured.cli("add-repo", two.url(WIDGETS))
    mirror = followed(configured.mirror(WIDGETS))
    reconfigure(configured, [])
    assert listed(configured) == {WIDGETS: ("config", False)}
    assert configured.cli_json("repos")[0]["state"] == "disabled"
    assert followed(configured.mirror(WIDGETS)) == mirror
    if configured.running:
        assert "not mirrored here" in git_result("ls-remote", f"{configured.git_url}/{WIDGETS}")[2]
    reconfigure(configured, [two.url(WIDGETS)])
    assert listed(configured) == {WIDGETS: ("config", True)}
    if configured.running:
        assert "HEAD" in remote_refs(f"{configured.git_url}/{WIDGETS}")


@pytest.mark.slow
def test_what_the_config_dropped_can_be_removed_or_taken_over(configured: Serve, two: HttpUpstream) -> None:
    """By enable or add-repo it becomes one of the command line; by remove-repo it goes."""
    reconfigure(configured, [])
    configured.cli("enable", WIDGETS)
    assert listed(configured) == {WIDGETS: ("cli", True)}
    reconfigure(configured, [two.url(WIDGETS)])
    reconfigure(configured, [])
    configured.cli("add-repo", two.url(WIDGETS), "--interval", "30s")
    assert listed(configured) == {WIDGETS: ("cli", True)}
    reconfigure(configured, [two.url(WIDGETS)])
    reconfigure(configured, [])
    configured.cli("remove-repo", WIDGETS)
    assert listed(configured) == {}


def test_a_disabled_repository_of_the_config_stays_disabled(configured: Serve, two: HttpUpstream) -> None:
    """A reload for another reason does not undo what an operator did."""
    configured.cli("disable", WIDGETS)
    reconfigure(configured, [two.url(WIDGETS), two.url(OTHER)])
    assert listed(configured) == {OTHER: ("config", True), WIDGETS: ("config", False)}


@pytest.mark.slow
def test_a_name_that_add_repo_gave_to_another_url(serve_factory: ServeFactory, two: HttpUpstream) -> None:
    """The config does not take its mirror over: told as a warning, and the rest of the list holds."""
    serve = serve_factory(refresh=QUIET).start()
    serve.cli("add-repo", two.url(WIDGETS))
    reconfigure(serve, [{"url": two.url(OTHER), "name": WIDGETS}, two.url(OTHER)])
    assert listed(serve) == {OTHER: ("config", True), WIDGETS: ("cli", True)}
    warnings = serve.cli_json("status")["warnings"]
    assert any(WIDGETS in warning and "remove-repo" in warning for warning in warnings)
    assert followed(serve.mirror(WIDGETS)) == refs(two.path(WIDGETS))


@pytest.mark.slow
def test_a_changed_url_of_a_listed_repository_is_followed_at_once(
    serve_factory: ServeFactory, two: HttpUpstream
) -> None:
    """The upstream moved: the mirror becomes what is there now, and keeps what it was."""
    serve = serve_factory(repos=[two.url(WIDGETS)], refresh=QUIET).start()
    serve.wait_for_repo(WIDGETS)
    tip = add_commit(two.path(OTHER), "main", {"x": "1\n"})
    reconfigure(serve, [{"url": two.url(OTHER), "name": WIDGETS}])
    serve.wait_for_ref(WIDGETS, "refs/heads/main", tip)
    assert listed(serve) == {WIDGETS: ("config", True)}


@pytest.mark.slow
def test_settings_of_one_repository(serve_factory: ServeFactory, two: HttpUpstream) -> None:
    """Name, branch and interval of a `[[repos]]`, and a change of them by reload."""
    entry = {"url": two.url(WIDGETS), "name": "my/own", "branch": "develop", "interval": "2h"}
    serve = serve_factory(repos=[entry], refresh=QUIET).start()
    serve.wait_for_repo("my/own")
    [shown] = serve.cli_json("repos")
    assert (shown["name"], shown["branch"], shown["interval"]) == ("my/own", "develop", 7200)
    assert repo_status(serve, "my/own")["tip"] == refs(two.path(WIDGETS))["refs/heads/develop"]
    reconfigure(serve, [{**entry, "branch": "main", "interval": "1s"}])
    tip = add_commit(two.path(WIDGETS), "main", {"x": "1\n"})
    serve.wait_for_ref("my/own", "refs/heads/main", tip)
    wait_until(lambda: repo_status(serve, "my/own")["tip"] == tip)


BROKEN = [
    ('url = "unterminated', "not valid TOML"),
    ('[refresh]\nintervall = "1s"\n', "refresh.intervall"),
    ('[refresh]\ninterval = "never"\n', "refresh.interval"),
    ("[[repos]]\n", "repos[1].url is missing"),
    ('[[repos]]\nurl = "https://u:s3cret@example.com/o/r"\n', "repos[1]"),
    ('[[repos]]\nurl = "https://a.example/o/r"\n[[repos]]\nurl = "https://b.example/o/r"\n', "already taken"),
    (None, "cannot read"),
]


@pytest.mark.slow
def test_a_reload_of_a_broken_file_changes_nothing(serve_factory: ServeFactory, two: HttpUpstream) -> None:
    """Refused as a whole, in words that name the file and the key; serving and following go on; mended, it is taken."""
    serve = serve_factory(repos=[two.url(WIDGETS)], refresh=QUIET).start()
    serve.wait_for_repo(WIDGETS)
    pid, before = serve.pid, serve.cli_json("repos")
    for text, reason in BROKEN:
        serve.config.unlink(missing_ok=True)
        if text is not None:
            serve.config.write_text(text)
        _reload(serve, "the reload was refused")
        said = [line for line in serve.log().splitlines() if "reload was refused" in line][-1]
        assert reason in said and str(serve.config) in said and "s3cret" not in said
    # The commands read the config too, so they are asked when it is whole again: unchanged, and not read yet.
    serve.configure([two.url(WIDGETS)], refresh=QUIET)
    assert serve.pid == pid and serve.cli_json("repos") == before
    assert "HEAD" in remote_refs(f"{serve.git_url}/{WIDGETS}")
    reconfigure(serve, [two.url(WIDGETS), two.url(OTHER)])
    serve.wait_for_repo(OTHER)


@pytest.mark.slow
@pytest.mark.parametrize(("text", "reason"), BROKEN, ids=[reason for _, reason in BROKEN])
def test_a_broken_config_is_a_usage_error(serve_factory: ServeFactory, text: str | None, reason: str) -> None:
    """serve and every command exit 2 and name file and key; nothing is made of it."""
    serve = serve_factory()
    serve.config.unlink()
    if text is not None:
        serve.config.write_text(text)
    for command in (["serve", *serve.options], ["repos"]):
        done = serve.cli(*command, check=False)
        assert done.returncode == 2 and reason in done.stderr and str(serve.config) in done.stderr
        assert "s3cret" not in done.stderr and done.stdout == ""
    assert not serve.mirror("o/r").exists()


def test_an_unknown_key_names_the_nearest_known_one(serve_factory: ServeFactory) -> None:
    """A misspelt setting is an error with a way out."""
    done = serve_factory(refresh={"intervall": "1s"}).cli("status", check=False)
    assert done.returncode == 2 and "did you mean refresh.interval?" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", ["reload", "restart"])
def test_a_changed_interval_takes_effect_at_once(serve_factory: ServeFactory, two: HttpUpstream, how: str) -> None:
    """From an hour to a second, although the next refresh was scheduled, and stored, for in an hour."""
    serve = serve_factory(repos=[two.url(WIDGETS)], refresh=QUIET).start()
    serve.wait_for_repo(WIDGETS)
    tip = add_commit(two.path(WIDGETS), "main", {"x": "1\n"})
    if how == "reload":
        reconfigure(serve, [two.url(WIDGETS)], interval="1s")
    else:
        serve.configure([two.url(WIDGETS)], refresh={**QUIET, "interval": "1s"})
        serve.restart()
    serve.wait_for_ref(WIDGETS, "refs/heads/main", tip, timeout=60)
    assert serve.cli_json("repos")[0]["interval"] == 1


@pytest.mark.slow
def test_a_restart_does_not_ask_before_it_is_due(serve_factory: ServeFactory, two: HttpUpstream) -> None:
    """What was verified a moment ago is served as fresh, and the upstream is left alone."""
    serve = serve_factory(repos=[two.url(WIDGETS)], refresh=QUIET).start()
    serve.wait_for_repo(WIDGETS)
    asked = two.count()
    serve.restart()
    assert repo_status(serve, WIDGETS)["state"] == "fresh"
    assert "HEAD" in remote_refs(f"{serve.git_url}/{WIDGETS}")
    assert two.count() == asked


@pytest.mark.slow
def test_local_upstreams_of_the_config_need_allow_local(serve_factory: ServeFactory, widgets_bare: Path) -> None:
    """Refused with the way out; with `allow_local` followed."""
    repos = [{"url": str(widgets_bare), "name": WIDGETS}]
    serve = serve_factory(repos=repos, refresh=QUIET)
    done = serve.cli("serve", *serve.options, check=False)
    assert done.returncode == 2 and "allow_local = true" in done.stderr
    serve.configure(repos, refresh={**QUIET, "allow_local": True})
    serve.start()
    serve.wait_for_repo(WIDGETS)
    assert followed(serve.mirror(WIDGETS)) == followed(widgets_bare)
