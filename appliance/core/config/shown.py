"""The configuration as it is in force, with where each value comes from: the file, or the default."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from typing import Any

from appliance.core.config.credentials import CredentialConfig
from appliance.core.config.repositories import AllowConfig, RepoConfig
from appliance.core.config.settings import SECTIONS, Config

DEFAULT, FILE = "default", "file"

_TABLES: dict[str, type[Any]] = {"repos": RepoConfig, "allow": AllowConfig, "credentials": CredentialConfig}


@dataclass(frozen=True)
class ShownValue:
    """One setting: its value as a config file writes it, and DEFAULT or FILE."""

    key: str
    value: Any
    source: str


@dataclass(frozen=True)
class ShownTable:
    """A section, or one table of a list such as `[[repos]]` (`is_listed`)."""

    name: str
    values: tuple[ShownValue, ...]
    is_listed: bool = False


def shown(config: Config) -> list[ShownTable]:
    """Every section in the order of the documentation, then the tables of the lists. Raises OSError.

    The file was parsed into `config` before, so that it is valid.
    """
    document = tomllib.loads(config.path.read_text(encoding="utf-8")) if config.path else {}
    tables = [_table(name, kind, document.get(name, {})) for name, kind in SECTIONS.items()]
    for name, kind in _TABLES.items():
        tables += [_table(name, kind, given, is_listed=True) for given in document.get(name, [])]
    return tables


def to_toml(value: Any) -> str:
    """A value as TOML: strings, whole numbers, booleans, and lists of them."""
    if isinstance(value, list):
        return f"[{', '.join(to_toml(each) for each in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    escaped = "".join(
        f"\\{each}" if each in '\\"' else each if each.isprintable() else f"\\u{ord(each):04x}" for each in str(value)
    )
    return f'"{escaped}"'


def _table(name: str, kind: type[Any], given: dict[str, Any], *, is_listed: bool = False) -> ShownTable:
    values = []
    for item in fields(kind):
        source = FILE if item.name in given else DEFAULT
        values.append(ShownValue(item.name, given.get(item.name, item.metadata.get("default", "")), source))
    return ShownTable(name, tuple(values), is_listed)
