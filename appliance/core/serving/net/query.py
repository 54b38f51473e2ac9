"""The query of a request."""

from __future__ import annotations

from urllib.parse import parse_qsl

MOST_FIELDS = 128
"""A request for many directories names each in a field of its own."""


class Query(dict[str, str]):
    """The fields that are not empty, each with its last value; bytes that are not UTF-8 are as `os.fsdecode` has them.

    Raises ValueError.
    """

    def __init__(self, text: str) -> None:
        self._fields = parse_qsl(text, keep_blank_values=True, errors="surrogateescape", max_num_fields=MOST_FIELDS)
        super().__init__((name, value) for name, value in self._fields if value)

    def every(self, name: str) -> list[str]:
        """All values of a field in their order, also empty ones."""
        return [value for field, value in self._fields if field == name]
