"""The configuration: every key, and errors that name the file, the key and what is allowed."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from appliance.core.config import settings as config_module
from appliance.core.config.repositories import RepoConfig
from appliance.core.config.settings import (
    SECTIONS,
    Config,
    find_config,
    find_state,
    load_config,
    parse_config,
)
from appliance.core.errors import UsageError
from appliance.core.units import Address

FILE = Path("/etc/gitmirror/gitmirror.toml")

# fmt: off
CONTRACT: dict[str, dict[str, Any]] = {
    "serve": {
        "git": (Address("127.0.0.1", 9418),), "http": (Address("127.0.0.1", 9419),),
        "admin": (Address("127.0.0.1", 9420),),
        "public_git": "", "public_http": "", "max_clients": 512,
    },
    "refresh": {
        "interval": 60, "timeout": 600, "concurrency": 4, "stale_after": 600, "allow_local": False,
        "webhook_secret_file": "",
    },
    "cache": {"budget": 10 * 2**30},
    "workspace": {"enabled": True, "disk_history": "full", "disk_budget": 50 * 2**30, "disk_group": ""},
    "recording": {"max_push": 256 * 2**20, "retention": 30 * 86400},
}
# fmt: on
"""Every key of the contract with its default."""

GIVEN: dict[tuple[str, str], tuple[str, Any]] = {
    ("serve", "git"): ('"0.0.0.0:1"', (Address("0.0.0.0", 1),)),
    ("serve", "http"): ('""', ()),
    ("serve", "admin"): ('["[::1]:0", "127.0.0.1:0"]', (Address("::1", 0), Address("127.0.0.1", 0))),
    ("serve", "public_git"): ('"git://mirror:9418"', "git://mirror:9418"),
    ("serve", "public_http"): ('"http://mirror"', "http://mirror"),
    ("serve", "max_clients"): ("7", 7),
    ("serve", "queue_timeout"): ('"1s"', 1),
    ("serve", "request_timeout"): ('"2s"', 2),
    ("serve", "idle_timeout"): ('"500ms"', 0.5),
    ("serve", "total_timeout"): ('"2h"', 7200),
    ("serve", "drain_timeout"): ('"3s"', 3),
    ("serve", "wait_for_clone"): ('"4s"', 4),
    ("refresh", "interval"): ('"1s"', 1),
    ("refresh", "timeout"): ('"1h"', 3600),
    ("refresh", "concurrency"): ("1", 1),
    ("refresh", "stale_after"): ('"7d"', 604800),
    ("refresh", "allow_local"): ("true", True),
    ("refresh", "webhook_secret_file"): ('"/run/secret"', "/run/secret"),
    ("refresh", "token_file"): ('"/run/token"', "/run/token"),
    ("alerts", "command"): ('["/bin/page", "--now"]', ("/bin/page", "--now")),
    ("alerts", "url"): ('"https://pager.example/a?b=c"', "https://pager.example/a?b=c"),
    ("events", "command"): ("\"/bin/take 'two words'\"", ("/bin/take", "two words")),
    ("events", "url"): ('"http://127.0.0.1:9000/"', "http://127.0.0.1:9000/"),
    ("backup", "to"): ('"/mnt/backup/node1"', "/mnt/backup/node1"),
    ("backup", "every"): ('"15m"', 900),
    ("cache", "budget"): ('"1MiB"', 2**20),
    ("cache", "lfs_budget"): ('"0B"', 0),
    ("storage", "budget"): ('"200GiB"', 200 * 2**30),
    ("workspace", "submodules"): ("true", True),
    ("workspace", "lfs"): ('"content"', "content"),
    ("workspace", "enabled"): ("false", False),
    ("workspace", "history"): ('"trees"', "trees"),
    ("workspace", "history_below"): ('"1GiB"', 2**30),
    ("workspace", "disk_history"): ('"tip"', "tip"),
    ("workspace", "disk_budget"): ('"1TiB"', 2**40),
    ("workspace", "disk_group"): ('"vmm"', "vmm"),
    ("recording", "max_push"): ('"1KiB"', 1024),
    ("recording", "retention"): ('"1d"', 86400),
    ("recording", "writers"): ('"guests"', "guests"),
    ("guests", "socket_directories"): ('["/run/fc"]', ("/run/fc",)),
    ("guests", "socket_group"): ('"vmm"', "vmm"),
    ("recording", "max_objects"): ("11", 11),
    ("recording", "max_new_sessions"): ("12", 12),
    ("recording", "max_turns"): ("13", 13),
    ("recording", "max_bytes"): ('"3GiB"', 3 * 2**30),
    ("fleet", "servers"): ('["nats://nats-1:4222", "tls://nats-2"]', ("nats://nats-1:4222", "tls://nats-2")),
    ("fleet", "name"): ('"prod"', "prod"),
    ("fleet", "node"): ('"node-1.example"', "node-1.example"),
    ("fleet", "credentials_file"): ('"/run/nkey"', "/run/nkey"),
    ("fleet", "tls_ca"): ('"/etc/nats-ca.pem"', "/etc/nats-ca.pem"),
    ("fleet", "replicas"): ("3", 3),
    ("fleet", "durability"): ('"sync"', "sync"),
    ("fleet", "sync_timeout"): ('"2s"', 2),
    ("fleet", "replicate_private"): ("true", True),
    ("fleet", "url"): ('"git://node-1:9418"', "git://node-1:9418"),
}
"""Another value for every key that there is: as written, and as read."""

EVERY_KEY = [(section, each.name) for section, kind in SECTIONS.items() for each in fields(kind)]


def refusal(text: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        parse_config(text, FILE)
    assert caught.value.exit_code == 2
    assert str(FILE) in caught.value.message
    return caught.value


def test_an_empty_file_is_the_defaults_of_the_contract() -> None:
    """Key by key, so that no default changes unnoticed."""
    empty = parse_config("", FILE)
    found = {name: {key: getattr(getattr(empty, name), key) for key in keys} for name, keys in CONTRACT.items()}
    assert found == CONTRACT
    assert empty.repos == ()


@pytest.mark.parametrize(("section", "key"), EVERY_KEY, ids=lambda part: str(part))
def test_every_key_can_be_set(section: str, key: str) -> None:
    """The value that the file gives is the one that holds, and no other key moves."""
    written, read = GIVEN[section, key]
    changed = parse_config(f"[{section}]\n{key} = {written}\n", FILE)
    assert getattr(getattr(changed, section), key) == read != getattr(getattr(Config(), section), key)
    others = {(s, k): getattr(getattr(changed, s), k) for s, k in EVERY_KEY if (s, k) != (section, key)}
    assert others == {(s, k): getattr(getattr(Config(), s), k) for s, k in others}


@pytest.mark.parametrize(("section", "key"), EVERY_KEY, ids=lambda part: str(part))
@pytest.mark.parametrize("value", ["[1]", "{}", "1.5", "2020-01-01"])
def test_a_value_of_the_wrong_type_names_file_key_and_what_is_allowed(section: str, key: str, value: str) -> None:
    """For every key alike."""
    error = refusal(f"[{section}]\n{key} = {value}\n")
    assert f"{section}.{key} is " in error.message
    assert error.hint.startswith("it must be ")


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ('[serve]\ngit = "nonsense"', "an address"),
        ("[serve]\ngit = 9418", "an address"),
        ("[serve]\nmax_clients = 0", "at least 1"),
        ("[serve]\nmax_clients = true", "a whole number"),
        ('[serve]\nmax_clients = "5"', "a whole number"),
        ('[serve]\nidle_timeout = "0s"', "above 0s"),
        ('[refresh]\ninterval = "500ms"', "at least 1s"),
        ("[refresh]\ninterval = 60", "a duration"),
        ("[refresh]\nallow_local = 1", "true or false"),
        ("[serve]\npublic_git = 1", "a string in quotes"),
        ('[alerts]\nurl = "file:///etc/passwd"', "http://127.0.0.1:9000/alerts"),
        ('[alerts]\nurl = "https://user:secret@pager.example/"', "without user and password"),
        ('[alerts]\ncommand = "page \'half"', "a list of arguments"),
        ('[events]\ncommand = ["x", 1]', "a list of arguments"),
        ('[serve]\npublic_git = "mirror:9418"', '"git://mirror:9418"'),
        ('[serve]\npublic_git = "http://mirror:9418"', '"git://mirror:9418"'),
        ('[serve]\npublic_git = "git://mirror:x"', '"git://mirror:9418"'),
        ('[serve]\npublic_git = "git://:9418"', '"git://mirror:9418"'),
        ('[serve]\npublic_http = "git://mirror"', '"http://mirror:9418"'),
        ('[serve]\npublic_http = "http://mirror:0"', '"http://mirror:9418"'),
        ('[cache]\nbudget = "10GB"', "a size"),
    ],
)
def test_a_value_that_is_not_allowed_says_what_is(line: str, allowed: str) -> None:
    """The hint is what to write instead."""
    assert allowed in refusal(line).hint


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("[refesh]\n", "refesh", "refresh"),
        ("[serve]\nmax_client = 5\n", "serve.max_client", "serve.max_clients"),
        ("[serve]\nGit = ''\n", "serve.Git", "serve.git"),
        ("[refresh]\nstale = '5m'\n", "refresh.stale", "refresh.stale_after"),
        ('[[repos]]\nurl = "https://h/a/b"\nbrunch = "x"\n', "repos[1].brunch", "repos[1].branch"),
        ("interval = '5s'\n", "interval", "serve"),
        ('[[repo]]\nurl = "https://h/a/b"\n', "repo", "repos"),
    ],
)
def test_an_unknown_key_names_itself_and_the_nearest_known_one(text: str, key: str, nearest: str) -> None:
    """A misspelt key is otherwise a setting that silently does not hold."""
    error = refusal(text)
    assert error.message == f"{FILE}: unknown key {key}"
    assert f"did you mean {nearest}?" in error.hint or key == "interval"
    assert nearest.rpartition(".")[2] in error.hint.partition("Known: ")[2]


@pytest.mark.parametrize("text", ["[serve", "git = ", "[serve]\ngit = 'a'\ngit = 'b'\n", "\x00"])
def test_bad_toml_names_the_file_and_the_place(text: str) -> None:
    """tomllib's own words say where."""
    assert "not valid TOML" in refusal(text).message


def test_a_section_that_is_there_twice_says_where_the_lines_belong() -> None:
    """The file that `install` writes has every section, so lines that are appended with theirs repeat it."""
    error = refusal('[fleet]\n# servers = []\n\n[fleet]\nservers = ["nats://a:4222"]\n')
    assert "twice" in error.message
    assert error.hint == "[fleet] is there already: write your lines below that line"


@pytest.mark.parametrize("text", ["serve = 1", "serve = []", "repos = {}", 'repos = "https://h/a/b"', "repos = [1]"])
def test_a_section_of_the_wrong_shape_says_how_to_write_it(text: str) -> None:
    """A table where a list belongs, and the other way round."""
    assert refusal(text).hint.startswith("write [")


def test_the_static_list_is_read_in_order_with_its_options() -> None:
    """Each entry keeps what it says, and leaves the rest at the default."""
    found = parse_config(
        '[[repos]]\nurl = "https://h/a/b"\n'
        '[[repos]]\nurl = "https://h/c/d"\nname = "x/y"\nbranch = "next"\ninterval = "30s"\n',
        FILE,
    )
    assert found.repos == (
        RepoConfig(url="https://h/a/b"),
        RepoConfig(url="https://h/c/d", name="x/y", branch="next", interval=30),
    )


def test_an_entry_without_a_url_is_named_by_its_number() -> None:
    """The list has no other handle."""
    error = refusal('[[repos]]\nurl = "https://h/a/b"\n[[repos]]\nname = "x/y"\n')
    assert "repos[2].url" in error.message


def test_a_missing_file_that_was_asked_for_is_an_error(tmp_path: Path) -> None:
    """Never an empty config: that would disable every repository of the list."""
    with pytest.raises(UsageError, match="No such file"):
        load_config(tmp_path / "missing.toml")


def test_a_directory_or_binary_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    """It names the file."""
    with pytest.raises(UsageError, match="Is a directory"):
        load_config(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe[serve]")
    with pytest.raises(UsageError, match=r"binary.toml is not UTF-8"):
        load_config(tmp_path / "binary.toml")


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """Silently taking it for an empty one would serve by other rules than the file's. A loop stops root too."""
    path = tmp_path / "loop.toml"
    path.symlink_to(path)
    with pytest.raises(UsageError, match="cannot read the config"):
        load_config(path)


def test_no_file_at_all_is_the_defaults() -> None:
    """`find_config` says None when there is none, and that is in order."""
    assert load_config(None) == Config()


def test_a_file_is_remembered_with_the_config(tmp_path: Path) -> None:
    """`remove-repo` of a listed repository says which file to edit."""
    path = tmp_path / "gitmirror.toml"
    path.write_text("")
    assert load_config(path).path == path


def test_the_option_wins_over_the_environment_and_that_over_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the contract; a relative path is made absolute."""
    system = tmp_path / "system.toml"
    monkeypatch.setattr(config_module, "SYSTEM_CONFIG", system)
    monkeypatch.chdir(tmp_path)
    assert find_config(None, {}) is None
    system.write_text("")
    assert find_config(None, {}) == system
    assert find_config(None, {"GITMIRROR_CONFIG": "/e.toml"}) == Path("/e.toml")
    assert find_config("o.toml", {"GITMIRROR_CONFIG": "/e.toml"}) == tmp_path / "o.toml"


def test_the_state_directory_is_found_in_the_contracts_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--state, GITMIRROR_STATE, STATE_DIRECTORY, the system's when it is there or for root, the user's own."""
    system = tmp_path / "system"
    monkeypatch.setattr(config_module, "SYSTEM_STATE", system)
    monkeypatch.chdir(tmp_path)
    environ = {"GITMIRROR_STATE": "/g", "STATE_DIRECTORY": "/s"}
    assert find_state("o", environ) == tmp_path / "o"
    assert find_state(None, environ) == Path("/g")
    assert find_state(None, {"STATE_DIRECTORY": "/s"}) == Path("/s")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert find_state(None, {}) == Path.home() / ".local/state/gitmirror"
    system.mkdir()
    assert find_state(None, {}) == system
    system.rmdir()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert find_state(None, {}) == system


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("", False),
        ('[refresh]\nstale_after = "30s"\n', True),
        ('[refresh]\ninterval = "10m"\n', True),
        ('[[repos]]\nurl = "https://h/a/b"\ninterval = "1h"\n', True),
        ('[refresh]\nstale_after = "2h"\n[[repos]]\nurl = "https://h/a/b"\ninterval = "1h"\n', False),
    ],
)
def test_an_interval_that_makes_a_healthy_repository_stale_is_warned_of(text: str, warned: bool) -> None:
    """Allowed, and surely not meant."""
    assert bool(parse_config(text, FILE).warnings()) is warned
    for warning in parse_config(text, FILE).warnings():
        assert "stale_after" in warning


def test_a_warning_says_durations_as_people_write_them() -> None:
    """An hour is `1h`, not `3600s`."""
    [warning] = parse_config('[refresh]\ninterval = "1h"\n', FILE).warnings()
    assert "1h" in warning
    assert "10m" in warning


def test_every_setting_has_a_line_of_help() -> None:
    """The default config that `install` writes is made from these."""
    for section, key in EVERY_KEY:
        [found] = [each for each in fields(SECTIONS[section]) if each.name == key]
        assert found.metadata["help"].endswith(".")
        assert found.metadata["parse"](found.metadata["default"]) == found.default
