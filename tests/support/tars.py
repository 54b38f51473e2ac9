"""Tars, with every Python that is supported."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any


def unpack_tar(archive: tarfile.TarFile, place: Path, *, filter: str = "data") -> None:
    """Unpacks a tar below `place`. Python 3.11.2, which Debian 12 has, knows no filters, and needs none."""
    known: dict[str, Any] = {"filter": filter} if hasattr(tarfile, "data_filter") else {}
    archive.extractall(place, **known)
