"""The view uses nothing private of Textual, so that a new release of it changes nothing that was not announced."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.app import App
from textual.message_pump import MessagePump
from textual.scroll_view import ScrollView

import appliance.tui

SOURCES = sorted(Path(appliance.tui.__path__[0]).rglob("*.py"))
MODULES = [
    ".".join(("appliance", "tui", *path.relative_to(appliance.tui.__path__[0]).with_suffix("").parts))
    for path in SOURCES
]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def of_textual(name: str) -> bool:
    return name.split(".")[0] == "textual"


def classes() -> Iterator[type]:
    """Those of the view that are made from a class of Textual."""
    for module in MODULES:
        for _, found in inspect.getmembers(importlib.import_module(module), inspect.isclass):
            if found.__module__ == module and issubclass(found, MessagePump):
                yield found


def own_names(found: type) -> set[str]:
    """The private names that the class itself, or one of ours that it is made from, gives to methods and attributes."""
    names: set[str] = set()
    for each in found.__mro__:
        if each.__module__.startswith("appliance."):
            names |= {name for name in vars(each) if is_private(name)}
            tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(each)))
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_private(node.attr):
                    names.add(node.attr)
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_nothing_private_is_imported_or_reached_for(path: Path) -> None:
    """No `textual._module`, no name with an underscore from one of its modules, no `other._attribute`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(of_textual(name.name) and "._" in name.name for name in node.names), ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and node.module and of_textual(node.module):
            assert "._" not in node.module and not any(is_private(name.name) for name in node.names), ast.unparse(node)
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = node.value
            assert isinstance(owner, ast.Name) and owner.id in ("self", "cls"), ast.unparse(node)


@pytest.mark.parametrize("found", list(classes()), ids=lambda found: found.__name__)
def test_names_are_our_own(found: type) -> None:
    """What is read from `self` is defined by us, and no name of Textual's is taken by chance."""
    base = next(each for each in found.__mro__ if each.__module__.startswith("textual."))
    theirs = {name for each in base.__mro__ for name in vars(each)}
    for each in (App, ScrollView):
        if issubclass(base, each):
            theirs |= set(vars(ScrollView() if each is ScrollView else App()))
    taken = {name for name in own_names(found) if is_private(name)} & theirs
    # Textual's metaclass puts these into each class.
    assert taken <= {
        "_decorated_handlers",
        "_computes",
        "_css_type_name",
        "_css_type_names",
        "_inherit_bindings",
        "_inherit_component_classes",
        "_inherit_css",
        "_merged_bindings",
        "_reactives",
    }, taken
    used = {
        node.attr
        for node in ast.walk(ast.parse(inspect.cleandoc("\n" + inspect.getsource(found))))
        if isinstance(node, ast.Attribute) and is_private(node.attr)
    }
    assert used <= own_names(found), used - own_names(found)
