"""The bench: that it runs, compares what it says it compares, notices wrong contents, and leaves nothing behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.generate import generate_repository
from tests.support.gitutil import clean_env, git
from tests.support.serve import ROOT

BENCH = ROOT / "scripts" / "bench.py"
SHAPES = {"no-checkout-depth-1", "no-checkout-full", "hydration-blob-none", "hydration-depth-1"}
HYDRATIONS = {"hydration-blob-none", "hydration-depth-1"}


def run_bench(tmp_path: Path, *arguments: str, bench: Path = BENCH) -> subprocess.CompletedProcess[str]:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    env = {**clean_env(tmp_path / "home"), "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    return subprocess.run(
        [sys.executable, str(bench), *arguments], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_a_quick_run_gives_every_figure_and_leaves_nothing(tmp_path: Path) -> None:
    """Every shape, protocol and server has its figure, in JSON and in the table."""
    repository = generate_repository(tmp_path / "widgets.git", files=40, commits=12)
    figures = tmp_path / "figures.json"
    done = run_bench(tmp_path, "--quick", "--at-once", "1,3", "--json", str(figures), str(repository))
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert set(found) == {"machine", "settings", "skipped", "repositories"}
    assert {"cores", "system", "git", "python", "workspaces", "load"} <= set(found["machine"])
    (repo,) = found["repositories"]
    assert set(repo) == {"name", "about", "clones", "at_once", "after_push", "workspaces", "cache", "faults"}
    assert repo["name"] == "widgets"
    assert repo["faults"] == []
    assert repo["about"]["commits"] == 12
    backend = "http-backend" not in found["skipped"]
    by_protocol = {
        "git": {"floor", "gitmirror", "git daemon"},
        "http": {"floor", "gitmirror", *(["http-backend"] if backend else [])},
    }
    assert set(repo["clones"]) == SHAPES
    for shape in SHAPES:
        for protocol, servers in by_protocol.items():
            check_clones(repo["clones"][shape][protocol], servers)
    assert set(repo["at_once"]) == {"1", "3"}
    for number, both in repo["at_once"].items():
        for protocol, servers in by_protocol.items():
            assert {server: each["served"] for server, each in both[protocol]["servers"].items()} == dict.fromkeys(
                servers, int(number)
            )
            assert set(both[protocol]["rate_to"]) == {name.replace(" ", "_").replace("-", "_") for name in servers} - {
                "gitmirror"
            }
    for shape in HYDRATIONS:
        assert len(repo["after_push"][shape]["first"]) == len(repo["after_push"][shape]["hot"]) == 1
        assert repo["after_push"][shape]["ratio"] > 0
    assert repo["cache"]["hits"] > 0
    assert "### widgets" in done.stdout
    assert done.stdout.count("\n| full, depth 1 |") == 5
    assert list((tmp_path / "temporary").iterdir()) == []


def check_clones(row: dict[str, Any], servers: set[str]) -> None:
    """One row: all servers have been measured, and the ratios are there."""
    assert set(row["servers"]) == servers
    for figures in row["servers"].values():
        assert set(figures) == {"median", "least", "runs", "refused", "cpu"}
        assert figures["median"] > 0
        assert figures["refused"] == 0
        assert figures["cpu"] >= 0
    assert row["to_floor"] > 0
    assert row["git_daemon_to_ours"] > 0


def test_what_is_no_bare_repository_is_refused_by_name(tmp_path: Path) -> None:
    """A wrong path is an error of usage, before anything is started."""
    done = run_bench(tmp_path, str(tmp_path / "nothing.git"))
    assert done.returncode == 2
    assert "nothing.git is not a bare repository" in done.stderr


def test_a_clone_with_another_tip_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone is compared with the commit that it must have, for loose and packed refs."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from benchlib.clones import SHAPES as KNOWN
    from benchlib.clones import Guests
    from benchlib.processes import clean_environment
    from benchlib.servers import Server

    repository = generate_repository(tmp_path / "widgets.git", files=20, commits=3)
    tip = git("rev-parse", "HEAD", cwd=repository)
    guests = Guests(tmp_path, clean_environment(tmp_path / "home"), tip)
    server = Server("here", {"git": repository.as_uri()})
    for shape in KNOWN:
        assert guests.inspect(server, "git", shape)
    assert guests.faults == []
    git("pack-refs", "--all", cwd=repository)
    guests.tip = "0" * 40
    guests.sample(server, "git", KNOWN[0])
    assert guests.faults == [f"no checkout, depth 1 by git from here: the tip is {tip}, not {'0' * 40}"]


@pytest.mark.slow
def test_the_generated_repository_is_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same plan, same ids; many packs and some loose objects."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from benchlib.generate import TINY, Plan, generate
    from benchlib.measure import describe
    from benchlib.processes import clean_environment

    env = clean_environment(tmp_path / "home")
    plan = Plan(files=200, size=300_000, commits=150, packs=3, loose_fetches=2)
    made = [generate(plan, tmp_path / name, env) for name in ("one", "two")]
    assert git("rev-parse", "HEAD", cwd=made[0]) == git("rev-parse", "HEAD", cwd=made[1])
    about = describe(made[0], env)
    assert (about["files"], about["commits"], about["packs"]) == (200, 150, 3)
    assert 0.9 < about["bytes"] / plan.size < 1.1
    assert about["loose"] > 20
    assert generate(plan, tmp_path / "one", env) == made[0]
    assert generate(TINY, tmp_path / "one", env) != made[0]


@pytest.mark.slow
@pytest.mark.parametrize("by", ["path", "git", "https"])
def test_the_cost_of_refreshes_is_counted(tmp_path: Path, by: str) -> None:
    """A few repositories for a moment: refreshes and CPU seconds of that time, and nothing left behind."""
    figures = tmp_path / "figures.json"
    arguments = ["--repos", "3", "--interval", "1", "--seconds", "10", "--by", by, "--json", str(figures)]
    done = run_bench(tmp_path, *arguments, bench=BENCH.with_name("bench_refresh.py"))
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert found["refreshes"] >= 6 and 0 < found["cpu_seconds"] < 20
    assert found["ms_each"] == pytest.approx(1000 * found["cpu_seconds"] / found["refreshes"], rel=0.2)
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.slow
def test_the_figures_of_the_readme_are_measured_side_by_side(tmp_path: Path) -> None:
    """Each way has a row, beside the clone from the upstream; disks are left out where there are none."""
    repository = generate_repository(tmp_path / "widgets.git", files=20, commits=3)
    bench = BENCH.with_name("bench_first.py")
    done = run_bench(tmp_path, str(repository), "--runs", "1", "--delay", "0.001", bench=bench)
    assert done.returncode == 0, done.stderr
    ways = re.findall(r"^\| (\w[^|]*) \| \d+\.\d{3} \| \d+\.\d \|$", done.stdout, re.MULTILINE)
    by_disk = [] if "without disks" in done.stderr else ["the kit, by a disk"]
    assert ways == [
        "git clone, from the upstream",
        "git clone --depth 1, from the upstream",
        "git clone, from the mirror",
        "the kit, by the tar",
        *by_disk,
    ]


@pytest.mark.slow
def test_costs_are_measured(tmp_path: Path) -> None:
    """A line for each: repositories, the one that guests use, both ways of guests, and turns."""
    repository = generate_repository(tmp_path / "widgets.git", files=20, commits=3)
    few = ["--repos", "1", "--guests", "2", "--sessions", "1", "--turns", "2", "--idle", "1"]
    done = run_bench(tmp_path, str(repository), *few, bench=BENCH.with_name("bench_costs.py"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[1:]
    assert [line.partition(":")[0] for line in lines] == [
        "1 small repositories",
        "one repository",
        "2 guests by git clone --depth 1",
        "2 guests by the tar",
        "1 sessions of 2 turns",
    ]
    assert all(re.search(r"[1-9]\d* (?:MB|kB|ms)", line) for line in lines)
