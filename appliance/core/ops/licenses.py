"""Lists the packages inside gitmirror.pyz and their licences, read from the packages' own metadata."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from appliance.core.errors import GitmirrorError

UNKNOWN = "unknown"
_CLASSIFIER = "License :: "


@dataclass(frozen=True)
class PackedLicense:
    """One packed distribution. `license` is an SPDX expression where the distribution gives one."""

    name: str
    version: str
    license: str


def licenses(folder: Path | None = None) -> list[PackedLicense]:
    """Returns every distribution installed in `folder`, sorted by name.

    `folder` is a directory of packages. The default is the directory in which gitmirror itself is installed: in the
    packed file it contains exactly what is packed, in a virtual environment everything that is installed there.
    Raises GitmirrorError when gitmirror runs from source files that are not installed.
    """
    if folder is None:
        try:
            folder = Path(str(metadata.distribution("gitmirror").locate_file("")))
        except metadata.PackageNotFoundError as error:
            raise GitmirrorError(
                "the licences are not known, because gitmirror runs from source files and not from gitmirror.pyz",
                hint="run gitmirror.pyz --licenses, or install the checkout into a virtual environment",
            ) from error
    packed = (_packed(distribution.metadata) for distribution in metadata.distributions(path=[str(folder)]))
    return sorted(packed, key=lambda one: one.name.lower())


def render_licenses(packed: Iterable[PackedLicense]) -> str:
    """Formats a table for people: name, version, licence; one line each, no header, no newline at the end."""
    rows = list(packed)
    name_width = max((len(row.name) for row in rows), default=0)
    version_width = max((len(row.version) for row in rows), default=0)
    return "\n".join(f"{row.name:{name_width}}  {row.version:{version_width}}  {row.license}" for row in rows)


def _packed(fields: metadata.PackageMetadata) -> PackedLicense:
    return PackedLicense(fields["Name"], fields["Version"], _license(fields))


def _license(fields: metadata.PackageMetadata) -> str:
    """Returns `License-Expression` (PEP 639), else `License` when it is a name, else the classifiers.

    Before PEP 639, some packages put the whole text of the licence into `License`; more than one line is not a name.
    """
    expression = _first(fields, "License-Expression")
    if expression:
        return expression
    name = _first(fields, "License")
    if name and "\n" not in name:
        return name
    classifiers = fields.get_all("Classifier") or []
    names = [text.rpartition(" :: ")[2] for text in classifiers if text.startswith(_CLASSIFIER)]
    return ", ".join(names) or UNKNOWN


def _first(fields: metadata.PackageMetadata, key: str) -> str:
    values = fields.get_all(key) or [""]
    return str(values[0]).strip()
