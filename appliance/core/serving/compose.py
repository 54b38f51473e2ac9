"""Builds the parts that serve guests: first those that answer fetches, then the ports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from urllib.parse import unquote

from appliance.core.access.gate import AccessGate
from appliance.core.config.settings import Config, ServeConfig
from appliance.core.events.facts import Publish
from appliance.core.git.complaints import Hear
from appliance.core.git.mirrors import Mirrors
from appliance.core.models import Health
from appliance.core.process.children import Children
from appliance.core.serving.fetch.away import AwaySessions
from appliance.core.serving.fetch.engine import Engine
from appliance.core.serving.fetch.ref_snapshots import RefSnapshots
from appliance.core.serving.fetch.response_cache import ResponseCache
from appliance.core.serving.fetch.transfers import Transfers
from appliance.core.serving.fetch.upload_pack import UploadPack
from appliance.core.serving.fetch.warmer import Warmer
from appliance.core.serving.net.acceptor import A_YEAR, Acceptor, Limits
from appliance.core.serving.net.admission import Admission
from appliance.core.serving.net.asgi import AsgiHandler
from appliance.core.serving.net.http import Exchange, HttpError, HttpPort, in_plain_text
from appliance.core.serving.net.seats import Seats
from appliance.core.serving.ports.admin_routes import AdminRoutes
from appliance.core.serving.ports.git import GitPort, Serving
from appliance.core.serving.ports.git_daemon import GitDaemon
from appliance.core.serving.ports.guest_routes import GuestRoutes
from appliance.core.serving.ports.lfs_routes import LfsRoutes
from appliance.core.serving.ports.smart_http import AttachmentPuts, SmartHttp
from appliance.core.serving.ports.wishes import Brings, GuestWishes
from appliance.core.serving.push.http import HttpPushes
from appliance.core.serving.push.parties import PushAuthority

API = "/v1"
"""Where the API begins on the admin port."""
KEPT_SECONDS = 3.0
"""How long a guest's HTTP connection waits for its next request. Some tunnels do not tell us that the guest has ended,
and let nobody else through until we end it."""
MOST_OPERATORS = 2048
"""Connections to the admin port at once, a thousand event streams among them. What guests are allowed says nothing
about it."""


@dataclass(frozen=True)
class Fetching:
    """The parts that answer fetches, shared by all ports."""

    cache: ResponseCache
    refs: RefSnapshots
    engine: Engine
    warmer: Warmer


def compose_fetching(
    mirrors: Mirrors,
    config: Config,
    children: Children,
    environment: Mapping[str, str],
    health: Callable[[int], Health],
    publish: Publish,
    hear: Hear,
    away: AwaySessions,
) -> Fetching:
    """Builds the parts that answer fetches. `environment` is that of upload-pack; `hear` gets its error output."""
    cache = ResponseCache(mirrors.layout.cache / "responses", config.cache.budget)
    cache.start()
    upload_pack = UploadPack(children, environment, config.serve.idle_timeout, hear)
    refs = RefSnapshots(upload_pack, mirrors)
    engine = Engine(cache, refs, upload_pack, mirrors, publish, away)
    return Fetching(cache, refs, engine, Warmer(engine, cache, mirrors, health))


@dataclass(frozen=True)
class Ports:
    """The acceptors of the guests' ports, and the connections of all ports.

    `guests` counts those of git:// and HTTP together. Operators have seats of their own, so that guests cannot lock
    them out.
    """

    acceptors: Mapping[str, Acceptor]
    admission: Admission
    guests: Seats
    operators: Seats
    transfers: Transfers = field(default_factory=Transfers)

    def connections(self) -> dict[str, int]:
        """The current connections of each port, including those that wait."""
        return {**{name: len(acceptor) for name, acceptor in self.acceptors.items()}, "admin": len(self.operators)}

    def gauges(self) -> Iterator[tuple[str, str, float]]:
        """The current values for /metrics: name, help text, value."""
        yield "clients", "Guests' connections, including those that wait.", len(self.guests)
        yield "transfers", "Answers that are being made or sent to guests.", len(self.transfers)
        yield "queue", "Guests that wait for a slot.", self.admission.waiting
        yield "refused", "Guests that got no slot in time, since the start.", self.admission.refused


def compose_ports(
    mirrors: Mirrors,
    config: ServeConfig,
    children: Children,
    daemon: GitDaemon,
    authority: PushAuthority,
    fetching: Fetching,
    gate: AccessGate,
    routes: GuestRoutes,
    attachments: AttachmentPuts,
    lfs: LfsRoutes,
    brings: Brings,
) -> Ports:
    """Builds the guests' ports and their acceptors. Nothing is accepted until the caller starts the acceptors."""
    limits = Limits.of(config)
    admission = Admission(limits)
    guests, operators = Seats(limits.max_connections), Seats(MOST_OPERATORS)
    writing = partial(mirrors.locks.shared, preempt=True)
    wishes = GuestWishes(brings, config.wait_for_clone)
    git = GitPort(Serving(mirrors, children, daemon, authority, fetching.engine, writing), gate, admission, wishes)
    budget = fetching.engine.budget
    pushes = HttpPushes(
        mirrors, children, daemon.environment, authority, writing, budget, config.idle_timeout, daemon.hear
    )  # fmt: skip
    http = SmartHttp(fetching.engine, gate, admission, pushes, attachments, routes, lfs, wishes)
    acceptors = {
        "git": Acceptor("git", git.serve, guests),
        "http": Acceptor("http", HttpPort(http.handle, limits, kept=KEPT_SECONDS).serve, guests),
    }
    return Ports(acceptors, admission, guests, operators, fetching.engine.transfers)


def compose_admin_port(config: ServeConfig, ports: Ports, routes: AdminRoutes, api: AsgiHandler) -> Acceptor:
    """Builds the admin port: the API below `/v1`, and everything else."""

    async def handle(exchange: Exchange) -> None:
        await (api if _is_of_api(exchange.path) else routes).handle(exchange)

    def explain(error: HttpError, target: bytes) -> tuple[str, str]:
        path = unquote(target.partition(b"?")[0].decode("ascii", "replace"), errors="replace")
        return (api.explain if _is_of_api(path) or not target else in_plain_text)(error, target)

    # An event stream has no end, and a first clone that somebody waits for may take hours.
    limits = replace(Limits.of(config), total_timeout=A_YEAR)
    return Acceptor("admin", HttpPort(handle, limits, explain).serve, ports.operators)


def _is_of_api(path: str) -> bool:
    return path == API or path.startswith(f"{API}/")
