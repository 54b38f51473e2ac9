"""Arrows run one way: what each module brings along, also by way of others, is read from the source.

For the modules at the top, that is compared with what a fresh interpreter has loaded.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from tests.support.serve import ROOT

LAYERS: list[set[str]] = [
    {"errors", "units", "text"},
    {"models", "names", "layout"},
    {"health", "upstream", "events"},
    {"config"},
    {"process"},
    {"git", "store"},
    {"access", "lfs"},
    {"refresh", "recording", "workspace", "maintenance"},
    {"observability"},
    {"serving", "api"},
    {"backup"},
    {"integrity", "fleet"},
    {"node"},
    {"daemon", "ops"},
]
"""The parts of `appliance.core` from the ground up, as `[tool.importlinter]` has them. A part uses what is below it."""

MOST_FLOORS = 8
"""Folders of core that stand on each other; the modules outside a folder are one floor."""
MOST_FLAT = 9
MOST_LINES = 350
MOST_LINES_TO_COMPOSE = 100
MOST_LAMBDAS = 5

MOST_SECONDS = 120
"""For hangs alone."""

HEAVY = {"sqlite3", "sqlite_utils", "h11", "git", "textual", "prometheus_client", "asyncio", "nats"}

LOOK = """
import importlib, json, os, sys
found = {}
for name in sys.argv[1:]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        importlib.import_module(name)
        os.write(writing, json.dumps(sorted(sys.modules)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        text = said.read()
    os.waitpid(child, 0)
    found[name] = json.loads(text or "null")
print(json.dumps(found))
"""
"""A fork of an interpreter that has imported nothing yet is as fresh as a new one, and takes a millisecond."""


def contract(name: str) -> dict[str, Any]:
    """An import contract of pyproject.toml."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return next(each for each in contracts if each["name"] == name)


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the appliance by name, but for the entry point and the hook, which are programs."""
    for path in sorted((ROOT / "appliance").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name not in ("appliance.__main__", "appliance.core.recording.pre_receive"):
            yield name, path


FILES = dict(modules())
CORE = [name for name in FILES if name.startswith("appliance.core.")]
PACKAGES = {name for name, path in FILES.items() if path.name == "__init__.py"}
CLI = [name for name in FILES if name.startswith("appliance.cli")]
TUI = [name for name in FILES if name.startswith("appliance.tui")]


def part(module: str) -> str:
    """`git` of `appliance.core.git.mirror`; empty for what is not in core."""
    words = module.split(".")
    return words[2] if words[:2] == ["appliance", "core"] and len(words) > 2 else ""


def look(*names: str) -> dict[str, set[str]]:
    """For each module what is loaded once it is imported, each from a fresh start."""
    argv = [sys.executable, "-c", LOOK, *names]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT, timeout=MOST_SECONDS)
    found = json.loads(done.stdout)
    assert all(found.values()), done.stderr
    return {name: set(loaded) for name, loaded in found.items()}


@cache
def parsed(path: Path) -> ast.Module:
    """A file as a tree, which is not to be changed."""
    return ast.parse(path.read_text())


@cache
def nodes(path: Path) -> dict[type[ast.AST], list[ast.AST]]:
    """All of a file's tree by kind. Walking through it is most of what these tests take."""
    found: dict[type[ast.AST], list[ast.AST]] = {ast.Import: [], ast.ImportFrom: [], ast.Call: [], ast.List: []}
    for node in ast.walk(parsed(path)):
        if type(node) in found:
            found[type(node)].append(node)
    return found


@cache
def imported(path: Path) -> set[str]:
    """Every module that a file imports when it runs: not what is for type checkers only."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node.body = []
    return {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


@cache
def at_the_top(path: Path) -> tuple[str, ...]:
    """Every module that a file imports when it is imported itself: nothing in functions, nothing for type checkers."""
    return tuple(_at_the_top(path))


def _at_the_top(path: Path) -> Iterator[str]:
    pending: list[ast.AST] = [parsed(path)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{each.name}" for each in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending += ast.iter_child_nodes(node)


@cache
def brought(name: str) -> set[str]:
    """What is imported with a module by the source of all of them: its own, and from elsewhere what they name."""
    found: set[str] = set()
    pending = [name]
    while pending:
        module = pending.pop()
        for each in accumulate(module.split("."), "{}.{}".format):
            if each in FILES and each not in found:
                found.add(each)
                pending += at_the_top(FILES[each])
        if not module.startswith("appliance"):
            found.add(module)
    return found


@cache
def mentioned(path: Path) -> set[str]:
    """Every module that a file imports anywhere: at the top, in functions, for type checkers only."""
    found: set[str] = set()
    for node in (*nodes(path)[ast.Import], *nodes(path)[ast.ImportFrom]):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{each.name}" for each in node.names}
    return found


@pytest.mark.slow
def test_what_the_source_says_is_what_is_loaded() -> None:
    """The rooms at the top bring nearly everything along: there the source is compared with the interpreter."""
    seen = look(
        "appliance.core.daemon.service", "appliance.core.ops.doctor", "appliance.cli.main", "appliance.core.units"
    )
    for name, loaded in seen.items():
        own = {each for each in loaded if each.startswith("appliance")}
        assert own == {each for each in brought(name) if each.startswith("appliance")}
    assert {"h11", "appliance.core.errors"} <= seen["appliance.core.daemon.service"]
    assert "h11" not in seen["appliance.core.units"]


@pytest.mark.parametrize("name", CORE)
def test_core_knows_neither_cli_nor_tui(name: str) -> None:
    """No click of its own (sqlite-utils brings one along), no Textual, none of the faces."""
    for loaded in (brought(name), mentioned(FILES[name])):
        top = {each.partition(".")[0] for each in loaded}
        assert "textual" not in top
        assert not {each for each in loaded if each.startswith(("appliance.cli", "appliance.tui"))}
    assert "click" not in {each.partition(".")[0] for each in mentioned(FILES[name])}


@pytest.mark.parametrize("name", CORE)
def test_a_part_uses_only_what_is_below_it(name: str) -> None:
    """Parts of one layer do not know each other; `lint-imports` says the same of what the source names."""
    floor = next(index for index, parts in enumerate(LAYERS) if part(name) in parts)
    allowed = set().union(*LAYERS[:floor]) | {part(name), ""}
    wrong = {each for each in brought(name) if part(each) not in allowed}
    assert not wrong, f"{name} comes with {sorted(wrong)}"


def test_every_part_has_a_layer() -> None:
    """A new folder of core is a room, and has to be given its place here and in pyproject.toml."""
    layers = [set(re.split(r" \| ", each)) for each in reversed(contract("The rooms of the core")["layers"])]
    assert layers == LAYERS
    assert {part(name) for name in CORE} == set().union(*LAYERS)


@pytest.mark.slow
def test_no_higher_than_it_was_drawn() -> None:
    """Folders of core by the longest way down, imports inside functions counted too."""
    below: dict[str, set[str]] = {}
    for name in CORE:
        if name.count(".") < 3:
            continue
        found = {each for each in imported(FILES[name]) if each.startswith("appliance.core.")}
        rooms = {part(each) if each.count(".") >= 3 or each in PACKAGES else "" for each in found}
        below.setdefault(part(name), set()).update(rooms - {part(name)})

    def height(room: str) -> int:
        return 1 + max((height(each) for each in below.get(room, ())), default=0)

    heights = {room: height(room) for room in below}
    assert max(heights.values()) <= MOST_FLOORS, heights


def test_modules_are_few_and_short() -> None:
    """Outside folders, core has what all its rooms speak of. A module over MOST_LINES lines is two things."""
    flat = [path.name for path in (ROOT / "appliance" / "core").glob("*.py")]
    assert len(flat) <= MOST_FLAT, flat
    lengths = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert not {name: lines for name, lines in lengths.items() if lines > MOST_LINES}


def test_the_assembly_of_serve_can_be_read_at_once() -> None:
    """A room that has several parts builds them itself; few parts refer to one that is built after them."""
    tree = parsed(FILES["appliance.core.daemon.compose"])
    [compose] = [node for node in tree.body if isinstance(node, ast.AsyncFunctionDef) and node.name == "compose"]
    assert compose.end_lineno is not None and compose.end_lineno - compose.lineno + 1 < MOST_LINES_TO_COMPOSE
    assert sum(isinstance(node, ast.Lambda) for node in ast.walk(compose)) <= MOST_LAMBDAS


def test_a_name_means_one_thing() -> None:
    """No two public classes of one name, and no two files of tests."""
    classes: dict[str, list[str]] = {}
    for name, path in FILES.items():
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes.setdefault(node.name, []).append(name)
    assert not {name: where for name, where in classes.items() if len(where) > 1}
    tests = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(tests) == len(set(tests)), sorted(name for name in tests if tests.count(name) > 1)


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_a_package_says_what_it_is(name: str) -> None:
    """Its parts, the life of one item through it, and what must always hold, in ten to twenty-five lines."""
    said = ast.get_docstring(parsed(FILES[name]))
    assert said and 10 <= len(said.splitlines()) <= 25, f"{name}: {len((said or '').splitlines())} lines"


@pytest.mark.parametrize("name", CORE)
def test_core_neither_prints_nor_exits(name: str) -> None:
    """It raises and returns; who called it speaks."""
    for node in nodes(FILES[name])[ast.Call]:
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "sys.exit", "exit", "quit", "input"), f"{name}: {called}, line {node.lineno}"


@pytest.mark.parametrize("name", [name for name in CORE if part(name) != "git"])
def test_git_is_run_by_its_room_and_what_serves(name: str) -> None:
    """Elsewhere no command line begins with git: doctor asks which one there is, serving speaks to upload-pack."""
    if name in (
        "appliance.core.ops.doctor",
        "appliance.core.serving.fetch.upload_pack",
        "appliance.core.serving.push.http",
    ):
        return
    for node in nodes(FILES[name])[ast.List]:
        if isinstance(node, ast.List) and node.elts and isinstance(node.elts[0], ast.Constant):
            assert node.elts[0].value != "git", f"{name}, line {node.lineno}"


@pytest.mark.parametrize("name", CLI)
def test_the_command_line_leaves_git_and_sql_to_core(name: str) -> None:
    """It parses, calls, prints."""
    tops = {each.partition(".")[0] for each in mentioned(FILES[name])}
    assert not tops & {"sqlite3", "sqlite_utils", "subprocess", "git", "h11", "socket"}
    assert not {each for each in mentioned(FILES[name]) if each.startswith("appliance.core.git")}


@pytest.mark.parametrize("name", TUI)
def test_the_live_view_shows_and_asks(name: str) -> None:
    """No git, no SQL, no sockets of its own; of core only the faces, and what they hand out."""
    found = mentioned(FILES[name])
    assert not {each.partition(".")[0] for each in found} & {"sqlite3", "sqlite_utils", "subprocess", "git", "socket"}
    assert not {each for each in found if each.startswith("appliance.cli")}
    used = {part(each) for each in found if each.startswith("appliance.core.")}
    assert used <= LAYERS[0] | LAYERS[1] | LAYERS[2] | {"config", "process", "api", "node", "ops"}


@pytest.mark.parametrize(
    "name", [name for name in TUI if name.startswith(("appliance.tui.screens", "appliance.tui.widgets"))]
)
def test_a_screen_knows_a_context_and_never_the_app(name: str) -> None:
    """Not for type checkers either; a widget knows neither the context nor a screen."""
    unknown = ["appliance.tui.app", "appliance.tui.palette"]
    if name.startswith("appliance.tui.widgets"):
        unknown += ["appliance.tui.context", "appliance.tui.screens"]
    assert not {each for each in mentioned(FILES[name]) if each.startswith(tuple(unknown))}


def test_no_circle_in_the_live_view() -> None:
    """Neither between its modules nor between its folders; imports for type checkers are counted too."""
    modules = {name: {each for each in mentioned(FILES[name]) if each in TUI and each != name} for name in TUI}
    folders: dict[str, set[str]] = {}
    for name, found in modules.items():
        here = ".".join(name.split(".")[:3])
        folders.setdefault(here, set()).update({".".join(each.split(".")[:3]) for each in found} - {here})
    for arrows in (modules, folders):
        TopologicalSorter(arrows).prepare()


def test_help_needs_nothing_heavy() -> None:
    """The group and all its commands: what only one of them uses is imported when it runs."""
    assert not look("appliance.cli.main")["appliance.cli.main"] & HEAVY


def test_a_command_that_asks_serve_needs_nothing_heavy_either() -> None:
    """Opening the node and asking it: what reads the database or runs git is imported when it is used."""
    assert not look("appliance.core.node.node")["appliance.core.node.node"] & (HEAVY - {"sqlite3"})


def test_the_version_needs_no_command_line() -> None:
    """Scripts ask for it often."""
    program = (
        "import sys; sys.argv = ['x', '--version']; from appliance.__main__ import main; main(); print(*sys.modules)"
    )
    argv = [sys.executable, "-S", "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert not loaded & (HEAVY | {"click", "pathlib", "json", "appliance.cli"})


HOOK = ROOT / "appliance" / "core" / "recording" / "pre_receive.py"
POLICY = HOOK.with_name("policy.py")


def test_the_hook_imports_the_standard_library_and_the_policy() -> None:
    """It runs by itself, beside a copy of the policy, with no package around it."""
    own = {each.partition(".")[0] for each in mentioned(HOOK)} - {"__future__"}
    assert own - {"policy"} <= sys.stdlib_module_names
    program = "import sys; __name__ = 'hook'; exec(open(sys.argv[1]).read()); print(*sys.modules)"
    argv = [sys.executable, "-IS", "-c", program, str(HOOK)]
    loaded = set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {"typing", "re", "pathlib", "json", "subprocess"}, "each import costs every push"
    assert not {each.partition(".")[0] for each in mentioned(POLICY)} - {"__future__"}
