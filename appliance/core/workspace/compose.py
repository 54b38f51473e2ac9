"""Builds what workspaces are made of: LFS objects, submodules, snapshots and disks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from appliance.core.access.gate import AccessGate
from appliance.core.config.settings import WorkspaceConfig
from appliance.core.git.mirrors import Mirrors
from appliance.core.lfs.objects import LfsObjects
from appliance.core.lfs.stock import LfsStock
from appliance.core.lfs.upstream import HasKeyring, LfsUpstreams
from appliance.core.models import Health, Repo
from appliance.core.store.disk_leases import DiskLeaseStore
from appliance.core.workspace.disk.build import build_disk
from appliance.core.workspace.disk.contents import Reader
from appliance.core.workspace.disk.disks import Disks
from appliance.core.workspace.lfs_ahead import FetchAhead
from appliance.core.workspace.module_finder import Bring, ModuleFinder
from appliance.core.workspace.snapshots import Snapshots


@dataclass(frozen=True)
class Workspaces:
    """The parts, for the code that starts, stops and wires them."""

    lfs: LfsObjects
    modules: ModuleFinder
    snapshots: Snapshots
    disks: Disks


def compose_workspaces(
    mirrors: Mirrors,
    health: Callable[[int], Health],
    holder: HasKeyring,
    leases: DiskLeaseStore,
    gate: AccessGate,
    *,
    settings: Callable[[], WorkspaceConfig],
    lfs_budget: Callable[[], int],
    repos: Callable[[], list[Repo]],
    is_private: Callable[[Repo], bool],
    reader_of: Callable[[str | None], Reader],
    nudge: Callable[[Repo], object],
    bring: Bring,
    brings: Callable[[], bool],
) -> Workspaces:
    """Builds the parts. `nudge`, `bring` and `brings` are how a submodule that is not here may come."""
    layout = mirrors.layout
    lfs = LfsObjects(LfsStock(layout.lfs, lfs_budget()), LfsUpstreams(mirrors, health, holder))
    modules = ModuleFinder(lambda: gate.catalog, mirrors, settings, nudge, bring, brings, gate.on_use)
    ahead = FetchAhead(lfs, lfs_budget)
    snapshots = Snapshots(layout, mirrors, health, settings=settings, modules=modules, lfs=ahead)
    disks = Disks(
        layout, mirrors, health, leases, settings=settings, repos=repos, is_private=is_private, build=build_disk,
        find=lambda url, base: gate.catalog.by_url(url, base), reader_of=reader_of, objects=lfs,
    )  # fmt: skip
    return Workspaces(lfs, modules, snapshots, disks)
