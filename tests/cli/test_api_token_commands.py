"""`api-token`: the same with a running `serve` and without one, because both use the database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.core.layout import Layout
from appliance.core.node.state_dir import open_stores
from appliance.core.store.api_tokens import ApiToken, ApiTokenStore, TokenScope
from tests.conftest import ServeFactory
from tests.support.serve import CommandFailed, Serve


@pytest.fixture(params=["with serve", "without serve"])
def serve(request: pytest.FixtureRequest, serve_factory: ServeFactory) -> Serve:
    """A node without repositories."""
    made = serve_factory()
    return made.start() if request.param == "with serve" else made


@pytest.fixture
def store(serve: Serve) -> Iterator[ApiTokenStore]:
    """The tokens, through a connection of its own, as `serve` has one."""
    stores = open_stores(Layout(serve.state))
    yield stores.api_tokens
    stores.database.close()


@pytest.mark.slow
def test_a_token_is_issued_listed_and_revoked(serve: Serve, store: ApiTokenStore) -> None:
    """What is printed on stdout is the token alone; a revocation holds for whoever asks the database next."""
    issued = serve.cli("api-token", "issue", "--scope", "read", "--name", "dashboard")
    token = issued.stdout.strip()
    assert token.startswith("gma_") and "valid until it is revoked" in issued.stderr
    brief = serve.cli_json("api-token", "issue", "--scope", "operate", "--ttl", "2h")
    assert store.find(token) == ApiToken(1, "dashboard", TokenScope.READ)
    assert store.find(brief["token"]) == ApiToken(2, "", TokenScope.OPERATE)
    listed = serve.cli_json("api-token", "list")
    assert listed == store.all()
    assert [(row["id"], row["scope"], row["state"]) for row in listed] == [
        (2, "operate", "valid"),
        (1, "read", "valid"),
    ]
    assert {key: brief[key] for key in listed[0]} == listed[0]
    assert "dashboard" in serve.cli("api-token", "list").stdout
    assert token not in serve.cli("api-token", "list").stdout
    assert serve.cli_json("api-token", "revoke", "1")["state"] == "revoked"
    assert store.find(token) is None
    assert "API token 2 is revoked" in serve.cli("api-token", "revoke", "2").stderr


@pytest.mark.slow
def test_what_is_wrong_is_said(serve: Serve) -> None:
    """A scope that there is not, no scope at all, a token that there is not."""
    for words in (("issue", "--scope", "admin"), ("issue",), ("revoke", "0"), ("revoke", str(2**64))):
        assert serve.cli("api-token", *words, check=False).returncode == 2, words
    with pytest.raises(CommandFailed, match="there is no API token 7"):
        serve.cli("api-token", "revoke", "7")
    assert serve.cli_json("api-token", "list") == []
