"""The node remembers when its backups were last verified, and what that found."""

from __future__ import annotations

from pathlib import Path

from appliance.core.backup.proof import last_proof
from appliance.core.layout import Layout
from appliance.core.node.state_dir import open_stores
from tests.conftest import ServeFactory

UNPROVED = {"verified_at": None, "faults": None}


def test_a_verification_is_remembered_for_its_directory_alone(serve_factory: ServeFactory, tmp_path: Path) -> None:
    to = tmp_path / "backup"
    serve = serve_factory(repos=[], backup={"to": str(to)})
    layout = Layout(serve.state)
    open_stores(layout).database.close()
    serve.here("backup")
    assert last_proof(layout, str(to)) == UNPROVED
    serve.here("backup", "verify", str(to))
    proof = last_proof(layout, str(to))
    assert proof["verified_at"] and proof["faults"] == 0
    assert last_proof(layout, str(tmp_path / "other")) == UNPROVED

    largest = max((path for path in to.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(b"no database")
    serve.here("backup", "verify", str(to), codes=(3,))
    assert last_proof(layout, str(to))["faults"] > 0

    layout.backup_proof.write_text("[]")
    assert last_proof(layout, str(to)) == UNPROVED


def test_a_wrong_state_directory_is_not_made(serve_factory: ServeFactory, tmp_path: Path) -> None:
    """Verifying reads, so it makes nothing but its note."""
    to = tmp_path / "backup"
    serve = serve_factory(repos=[], backup={"to": str(to)})
    open_stores(Layout(serve.state)).database.close()
    serve.here("backup")
    elsewhere = serve_factory("elsewhere", repos=[])
    elsewhere.here("backup", "verify", str(to))
    assert not elsewhere.state.exists()
