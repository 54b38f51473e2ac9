"""`storage` of `status --json`: what the state directory takes, by what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.core.layout import Layout
from appliance.core.maintenance.usage import UsageMeter
from appliance.core.node.storage import storage_document
from tests.conftest import WIDGETS, ServeFactory
from tests.recording.conftest import record_turn
from tests.support.gitutil import wait_until
from tests.support.upstream import HttpUpstream

BLOCK = 4096


def test_files_count_where_they_belong(tmp_path: Path) -> None:
    """In blocks on the disk; recordings are not counted among the mirrors as well."""
    layout = Layout(tmp_path)
    for path in (layout.cache / "answer", layout.workspaces / "acme" / "widgets" / "main.tar", layout.database):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 3 * BLOCK)
    generation = layout.disks / "acme" / "widgets" / "1"
    (generation / "images").mkdir(parents=True)
    (generation / "data").write_bytes(b"x" * 4 * BLOCK)
    (generation / "images" / "main").write_bytes(b"x" * BLOCK)
    (layout.evidence / "acme" / "widgets.1").mkdir(parents=True)
    (layout.evidence / "acme" / "widgets.1" / "pack").write_bytes(b"x" * BLOCK)
    packs = layout.mirror("acme/widgets") / "objects" / "pack"
    packs.mkdir(parents=True)
    (packs / "a.pack").write_bytes(b"x" * 9 * BLOCK)
    found = storage_document(UsageMeter(layout).measure(), {"acme/widgets": 4 * BLOCK}, tmp_path, None)
    assert found["by"] == {
        "mirrors": 6 * BLOCK,
        "answers": 3 * BLOCK,
        "workspaces": 3 * BLOCK,
        "disks": 5 * BLOCK,
        "lfs": 0,
        "recordings": 4 * BLOCK,
        "database": 3 * BLOCK,
    }
    assert found["used"] == sum(found["by"].values()) < found["budget"]
    [repo] = found["repos"]
    assert repo["name"] == "acme/widgets"
    # Whose a cached response is only `serve` knows, and the database is nobody's.
    assert repo["by"] == {kind: size for kind, size in found["by"].items() if kind != "database"} | {"answers": 0}
    assert repo["bytes"] == found["used"] - 6 * BLOCK


@pytest.mark.slow
def test_status_has_it_with_and_without_serve(
    serve_factory: ServeFactory, upstream: HttpUpstream, tmp_path: Path
) -> None:
    """A mirror, a cached response, a turn and the database are there; without `serve` the same is said of them."""
    serve = serve_factory(repos=[upstream.url(WIDGETS)]).start()
    serve.wait_for_repo(WIDGETS)
    guest = serve.clone(tmp_path / "guest", WIDGETS, "--depth=1")
    record_turn(guest, "storing", "a turn")

    def with_a_turn() -> dict[str, int] | None:
        by: dict[str, int] = serve.cli_json("status")["storage"]["by"]
        return by if by["recordings"] and by["answers"] else None

    by = wait_until(with_a_turn, message="the turn and the response count")
    assert by["mirrors"] and by["database"]
    assert serve.terminate() == 0
    alone = serve.cli_json("status", codes=(4,))["storage"]
    assert alone["by"]["recordings"] == by["recordings"] and alone["used"] <= alone["budget"]
