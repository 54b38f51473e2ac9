"""Fixtures of all tests: isolated git, real repositories, the upstream and the appliance as processes.

Expensive data is built once per test session, also with several workers, and copied for each test.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from tests.support.generate import copy_repository, generate_repository
from tests.support.gitutil import clean_env, git
from tests.support.serve import ROOT, Section, Serve, Value
from tests.support.upstream import GitDaemonUpstream, HttpUpstream

WIDGETS = "acme/widgets"
"""The repository that the `upstream` fixture serves."""
WITHOUT_WORKSPACES = {"backup", "fleet", "observability", "recording", "refresh"}
"""Rooms whose tests start `serve` with `[workspace] enabled = false`, unless they say otherwise: a test in the section,
a module by `KEEPS_WORKSPACES`."""

# A shell that starts the tests in the background has SIGINT ignored, and what they start would ignore it as well.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Next to nothing is garbage before the tests begin, and looking for it takes a quarter of that time.
gc.disable()

_AMBIENT = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


class ServeFactory(Protocol):
    """Makes a `Serve` with its state below the test's directory; it is closed after the test."""

    def __call__(
        self,
        name: str = "state",
        *,
        repos: Sequence[str | Mapping[str, Value]] = (),
        pyz: Path | None = None,
        python: str | Path = sys.executable,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] | None = None,
        **sections: Section,
    ) -> Serve:
        """Takes the arguments of `Serve`; `name` is the name of the state directory."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that may take long come first, so that no worker has one left when the others are done.

    The files of the fleet are spread among the others: its tests wait more than they work, so beside each other they
    would leave the processors idle.
    """
    fleet = ROOT / "tests" / "fleet"
    groups: dict[bool, list[pytest.Item]] = {True: [], False: []}
    for item in items:
        groups[fleet in item.path.parents].append(item)
    place: dict[Path, float] = {}
    for group in groups.values():
        for number, item in enumerate(group):
            place.setdefault(item.path, number / len(group))
    items.sort(key=lambda item: (item.get_closest_marker("timeout") is None, place[item.path]))


def pytest_collection_finish() -> None:
    """Spare the garbage collector what lives to the end: all modules and some ten thousand tests.

    In this process it then looks less often, which was a fifth of the time of the tests of the live view. `serve` and
    the other commands that run in processes of their own are not changed by that.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    gc.enable()


@pytest.fixture(autouse=True)
def git_env(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Isolate the test's own process from HOME, git config and proxies; return the new environment."""
    env = clean_env(tmp_path_factory.mktemp("home"))
    for name in list(os.environ):
        if name.startswith(("GIT_", "GITMIRROR_", "SSH_")) or name in _AMBIENT:
            monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return env


@pytest.fixture(scope="module", autouse=True)
def workspaces(request: pytest.FixtureRequest) -> None:
    """Has `serve` keep workspaces ready, as it does by default, but for the rooms that have nothing to do with them."""
    has_to_do = request.path.relative_to(ROOT / "tests").parts[0] not in WITHOUT_WORKSPACES
    Serve.keeps_workspaces = getattr(request.module, "KEEPS_WORKSPACES", has_to_do)


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """Undo what a test did to the umask: `serve`, run in the test's own process, closes what it creates to others."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(scope="session")
def shared_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all workers of this session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def make_once(shared_directory: Path) -> Callable[[str, Callable[[Path], object]], Path]:
    """Return `make(name, build)`, which returns a path that `build(path)` fills once per session."""

    def make(name: str, build: Callable[[Path], object]) -> Path:
        path, lock = shared_directory / name, shared_directory / f"{name}.lock"
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not path.exists():
                growing = shared_directory / f"{name}.new"
                build(growing)
                growing.rename(path)
        return path

    return make


@pytest.fixture(scope="session")
def bundles() -> dict[str, Path]:
    """The bundles of real repositories beside the checkout, by name. Skips the test when there are none."""
    found = {path.stem: path for path in sorted((ROOT.parent / "shared" / "data").glob("*.bundle"))}
    if not found:
        pytest.skip("no bundles of real repositories beside the checkout (../shared/data)")
    return found


@pytest.fixture(scope="session")
def homelab_bare(bundles: dict[str, Path], make_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A bare clone of the homelab bundle: 800 commits, 2,310 files. Do not write to it; copy it."""
    return _bare_clone(bundles, "homelab", make_once)


@pytest.fixture(scope="session")
def sqlite_utils_bare(bundles: dict[str, Path], make_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A bare clone of the sqlite-utils bundle: 214 refs. Do not write to it; copy it."""
    return _bare_clone(bundles, "sqlite-utils", make_once)


@pytest.fixture(scope="session")
def generated_bare(make_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The generated repository with its defaults. Do not write to it; copy it."""
    return make_once("generated.git", lambda path: generate_repository(path))


@pytest.fixture
def widgets_bare(generated_bare: Path, tmp_path: Path) -> Path:
    """A copy of the generated repository for this test alone."""
    return copy_repository(generated_bare, tmp_path / "widgets.git")


@pytest.fixture
def upstream(generated_bare: Path, tmp_path: Path) -> Iterator[HttpUpstream]:
    """An upstream over HTTP that serves the generated repository as `acme/widgets`."""
    with HttpUpstream(tmp_path / "upstream") as server:
        server.add(WIDGETS, generated_bare)
        yield server


@pytest.fixture
def serve_factory(tmp_path: Path, shared_directory: Path) -> Iterator[ServeFactory]:
    """Makes appliances (not started) that are closed after the test."""
    made: list[Serve] = []

    def make(
        name: str = "state",
        *,
        repos: Sequence[str | Mapping[str, Value]] = (),
        pyz: Path | None = None,
        python: str | Path = sys.executable,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] | None = None,
        **sections: Section,
    ) -> Serve:
        # All tests of the session share one unpacked copy of the built file.
        env = {"SHIV_ROOT": str(shared_directory / "shiv"), **(env or {})} if pyz else env
        serve = Serve(tmp_path / name, repos=repos, pyz=pyz, python=python, env=env, options=options, **sections)
        made.append(serve)
        return serve

    yield make
    for serve in made:
        serve.close()


@pytest.fixture
def serve(serve_factory: ServeFactory, upstream: HttpUpstream) -> Serve:
    """A running appliance that follows `acme/widgets` of `upstream` every second and has mirrored it."""
    running = serve_factory(repos=[upstream.url(WIDGETS)], refresh={"interval": "1s"}).start()
    running.wait_for_repo(WIDGETS)
    return running


def _bare_clone(
    bundles: dict[str, Path], name: str, make_once: Callable[[str, Callable[[Path], object]], Path]
) -> Path:
    bundle = bundles.get(name)
    if bundle is None:
        pytest.skip(f"no {name}.bundle beside the checkout (../shared/data)")
    return make_once(
        f"{name}.git", lambda path: git("clone", "--quiet", "--mirror", str(bundle), str(path), timeout=300)
    )


@pytest.fixture
def hub(tmp_path: Path, generated_bare: Path) -> Iterator[GitDaemonUpstream]:
    """A real git daemon that accepts pushes."""
    with GitDaemonUpstream(tmp_path / "hub", push=True) as upstream:
        upstream.add("acme/widgets", generated_bare)
        yield upstream
