"""The themes: dark, light, and the terminal's own. All have the same colour names, so one style sheet serves all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from textual.theme import BUILTIN_THEMES, Theme

DARK, LIGHT, TERMINAL = "gitmirror-dark", "gitmirror-light", "gitmirror-terminal"

_TONES = (
    "good",
    "warn",
    "bad",
    "dim",
    "accent",
    "bar",
    "cursor",
    "cursor-blurred",
    "here",
    "added",
    "removed",
    "keyword",
    "string",
    "number",
    "name",
)


def _theme(name: str, dark: bool, background: str, foreground: str, surface: str, *tones: str) -> Theme:
    named = dict(zip(_TONES, tones, strict=True))
    return Theme(
        name=name,
        dark=dark,
        primary=named["here"],
        secondary=named["accent"],
        accent=named["accent"],
        success=named["good"],
        warning=named["warn"],
        error=named["bad"],
        background=background,
        foreground=foreground,
        surface=surface,
        panel=named["bar"],
        variables={f"gm-{key}": value for key, value in named.items()},
    )


THEMES = (
    _theme(
        DARK, True, "#11151a", "#d5dbe3", "#181d24",
        "#7fc98f", "#e5b567", "#f07a78", "#8290a0", "#79b8e8", "#1e252e", "#28405c", "#222c38", "#2f5f93",
        "#173323", "#3c1d22", "#c79bf0", "#9bd1a5", "#e2a36f", "#86bdf2",
    ),
    _theme(
        LIGHT, False, "#fbfbf9", "#24292f", "#f1f1ee",
        "#1a7340", "#8a5a00", "#b3261e", "#59636d", "#1a5fa8", "#e6e8ea", "#cfe0f2", "#e2e9f0", "#9cc3ea",
        "#d9f2e0", "#fbdfdf", "#7a2fb0", "#22693a", "#9a4a00", "#1a4f9c",
    ),
)  # fmt: skip


def terminal_theme() -> Theme:
    """Makes the theme of the terminal's sixteen colours on its own background; under NO_COLOR it is plain text."""
    base = BUILTIN_THEMES["ansi-dark"]
    tones = dict.fromkeys(_TONES, "ansi_default") | {
        "good": "ansi_green",
        "warn": "ansi_yellow",
        "bad": "ansi_red",
        "accent": "ansi_cyan",
        "keyword": "ansi_magenta",
        "string": "ansi_green",
        "name": "ansi_blue",
    }
    return replace(base, name=TERMINAL, variables=base.variables | {f"gm-{key}": value for key, value in tones.items()})


def wanted_theme(environment: Mapping[str, str]) -> str:
    """Returns the terminal's own theme under NO_COLOR (no-color.org), and the light one if COLORFGBG says so.

    Some terminals set COLORFGBG to their foreground and background colours.
    """
    if environment.get("NO_COLOR"):
        return TERMINAL
    background = environment.get("COLORFGBG", "").rpartition(";")[2]
    return LIGHT if background in ("7", "15") else DARK
