"""Webhooks, in process: what a body whose signature holds may say."""

from __future__ import annotations

from urllib.parse import urlencode

from hypothesis import given
from hypothesis import strategies as st

from appliance.core.models import Repo
from appliance.core.names import is_branch_name
from appliance.core.serving.ports.admin_routes import IN_A_THREAD
from appliance.core.serving.ports.webhook import FORM, Finder, Malformed, Signature, read_delivery
from tests.fuzz import grammar
from tests.fuzz.budget import Budget, timed
from tests.fuzz.mutation import mutations

WIDGETS = Repo(1, "acme/widgets", "https://127.0.0.1/acme/widgets", None, "cli", None, True, 0.0)
FINDER = Finder([WIDGETS])
BODIES = Budget.of(600)


@BODIES.settings
@given(
    grammar.WEBHOOKS,
    grammar.SEEDS,
    st.sampled_from(["push", "create", "delete"]),
    st.sampled_from(["application/json", FORM, f"{FORM}; charset=x", ""]),
)
def test_webhooks(document: bytes, seed: int, event: str, content_type: str) -> None:
    """Malformed with words, or a delivery whose ref is a name that can be printed, stored and given to git."""
    body = urlencode({"payload": document}).encode() if content_type.startswith(FORM) and seed % 2 else document
    for data in mutations(body, seed, BODIES.variants):

        def read(data: bytes = data) -> None:
            try:
                delivery = read_delivery(event, content_type, data)
            except Malformed as error:
                assert str(error).isprintable()
                return
            assert FINDER.find(delivery) in ([], [WIDGETS])
            if (announced := delivery.announcement) is not None:
                assert is_branch_name(announced.ref) and announced.ref.isprintable() and announced.ref.encode()
                assert announced.oid is None or announced.oid.isalnum() or announced.oid == ""

        assert len(data) <= IN_A_THREAD
        timed(read)


@BODIES.settings
@given(st.binary(max_size=90), grammar.SEEDS)
def test_signatures(given_header: bytes, seed: int) -> None:
    """Nothing but the right one holds."""
    for data in mutations(b"sha256=" + given_header.hex().encode(), seed, BODIES.variants):
        signature = Signature(b"secret", data.decode("latin-1"))
        signature.update(b"{}")
        assert not signature.holds()
