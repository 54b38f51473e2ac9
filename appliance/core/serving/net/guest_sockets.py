"""The unix sockets of known guests: `PATH_9418` for git:// and `PATH_9419` for HTTP.

A guest's sockets are made in steps, so that a kill at any moment leaves nothing that the next start does not know:
they are bound under temporary names that nobody else uses, their identities are remembered in the database, and then
they get their names. Under systemd, the service manager keeps them open while `serve` restarts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from appliance.core.config.settings import GuestsConfig
from appliance.core.errors import GitmirrorError
from appliance.core.models import Guest
from appliance.core.process.groups import find_group
from appliance.core.process.socket_identity import identity_of
from appliance.core.serving.net.acceptor import Acceptor, Road
from appliance.core.serving.net.socket_files import (
    SocketFile,
    SocketPathError,
    bind,
    explained,
    grant,
    is_dead,
    is_file,
    open_directory,
    remove_dead,
    require_below,
    temporary_name,
)
from appliance.core.serving.net.sockets import BACKLOG

log = logging.getLogger(__name__)

PORTS = {"git": 9418, "http": 9419}
"""Firecracker delivers what its guest sends to port P of CID 2 at the socket `PATH_P`."""
MODE = 0o660
"""Who is in the sockets' group may connect, and then is the guest."""
KEPT_PREFIX = "guest-"
"""The prefix of the names under which the service manager keeps guests' sockets."""

Remember = Callable[[Mapping[int, Mapping[str, str]]], None]
"""Stores the identities of guests' socket files, by guest and path. Raises StoreError."""


class SocketKeeper(Protocol):
    """A service manager that keeps sockets open over a restart."""

    def keep(self, name: str, listening: socket.socket) -> bool:
        """Hands over a socket; False if that has to be tried again. Never raises."""
        ...

    def drop(self, name: str) -> None:
        """Asks for a socket to be closed. Never raises."""
        ...


@dataclass
class _Opened:
    """One listening socket of a guest. `kept` says whether the service manager has it."""

    port: str
    path: str
    listening: socket.socket
    file: SocketFile
    kept: bool = False


class GuestSockets:
    """Opens and closes the sockets of guests, whose connections `acceptors` (by port name) accept.

    `keeper` is the service manager if it keeps sockets. `open` may run in another thread; the rest runs in the loop.
    """

    def __init__(
        self,
        acceptors: Mapping[str, Acceptor],
        remember: Remember,
        settings: Callable[[], GuestsConfig],
        keeper: SocketKeeper | None = None,
    ) -> None:
        self._acceptors = acceptors
        self._remember = remember
        self._settings = settings
        self._keeper = keeper
        self._open: dict[int, list[_Opened]] = {}
        self._inherited: dict[str, socket.socket] = {}

    def __contains__(self, guest_id: int) -> bool:
        """Whether the sockets of a guest are open."""
        return guest_id in self._open

    def inherit(self, sockets: Mapping[str, socket.socket]) -> None:
        """Takes the sockets that the service manager kept, by the names that they were kept under."""
        self._inherited.update(sockets)

    def open(
        self, guests: Iterable[Guest], remembered: Mapping[str, str]
    ) -> tuple[dict[int, list[_Opened]], dict[int, GitmirrorError]]:
        """Makes the sockets of guests and listens on them; `accept` takes the result.

        `remembered` has the identities of the files that an earlier `serve` made, by path. Also returns why sockets
        could not be made, by guest, and of those none is left. Raises StoreError, and then none is left at all.
        """
        made: dict[int, list[_Opened]] = {}
        problems: dict[int, GitmirrorError] = {}
        fresh: dict[int, Guest] = {}
        try:
            for guest in guests:
                try:
                    made[guest.id] = self._bound(guest, remembered)
                    fresh[guest.id] = guest
                except GitmirrorError as error:
                    problems[guest.id] = error
            self._remember({number: {each.path: each.file.identity for each in made[number]} for number in made})
            for number, guest in fresh.items():
                try:
                    self._named(guest, made[number])
                except GitmirrorError as error:
                    self._discard(guest, made.pop(number))
                    problems[number] = error
        except BaseException:
            for number, guest in fresh.items():
                if number in made:
                    self._discard(guest, made[number])
            raise
        return made, problems

    def accept(self, made: Mapping[int, list[_Opened]], guests: Mapping[int, Guest]) -> None:
        """Accepts connections on sockets that `open` has made."""
        for number, opened in made.items():
            for each in opened:
                self._acceptors[each.port].add(each.listening, Road(guests[number].name, number))
            self._open[number] = opened
            self._hand_over(number)

    def close(self, guest_id: int) -> None:
        """Closes the sockets of a guest and removes their files."""
        opened = self._open.pop(guest_id, [])
        for each in opened:
            # The file goes first, so that nobody finds one on which nobody listens.
            each.file.remove()
            self._acceptors[each.port].remove(each.listening)
            if self._keeper is not None:
                self._keeper.drop(_kept_name(guest_id, each.port, each.file.identity))
        _close_directory(opened)

    def clean(self, guest: Guest, remembered: Mapping[str, str]) -> None:
        """Removes what an earlier `serve` left of a guest that is no longer served, and drops what was kept for it."""
        self._refuse_inherited(guest.id)
        if guest.unix is None:
            return
        with contextlib.suppress(GitmirrorError):
            directory = open_directory(Path(guest.unix).parent)
            try:
                self._clear(directory, guest, remembered)
            finally:
                os.close(directory)

    def forget_inherited(self) -> None:
        """Closes the kept sockets of guests that are not known, once it is clear who is."""
        for name in list(self._inherited):
            self._refuse(name)

    def close_all(self) -> None:
        """When `serve` stops: closes all sockets but those that the service manager keeps for the next start."""
        for guest_id, opened in list(self._open.items()):
            if not all(each.kept for each in opened):
                self.close(guest_id)

    def lost(self) -> list[int]:
        """The guests whose socket's file was removed or replaced, or whose directory was: nobody can come by it."""
        return [
            number
            for number, opened in list(self._open.items())
            if not all(_is_at(each.path, each.file.identity) for each in opened)
        ]

    def hand_over_again(self) -> None:
        """Hands over what the service manager had no room for."""
        for number in self._open:
            self._hand_over(number)

    # -- steps -----------------------------------------------------------------------------------------------

    def _bound(self, guest: Guest, remembered: Mapping[str, str]) -> list[_Opened]:
        """Listens under temporary names, or goes on with the sockets that were kept. Raises GitmirrorError."""
        if guest.unix is None:
            return []
        settings, path = self._settings(), Path(guest.unix)
        group = find_group(settings.socket_group)
        if group is None:
            raise SocketPathError(
                f"there is no group {settings.socket_group} on this node",
                hint="create it, or correct [guests] socket_group",
            )
        directory = open_directory(path.parent)
        opened: list[_Opened] = []
        try:
            require_below(directory, guest.unix, settings.socket_directories)
            for port in PORTS:
                if (kept := self._kept(guest, port, directory, group)) is not None:
                    opened.append(kept)
            taken = {each.port for each in opened}
            self._clear(directory, guest, remembered, but=taken)
            for port, number in PORTS.items():
                if port not in taken:
                    listening, file = bind(directory, temporary_name(guest, number), MODE, group, BACKLOG)
                    file = SocketFile(directory, f"{path.name}_{number}", file.identity)
                    opened.append(_Opened(port, f"{guest.unix}_{number}", listening, file))
        except (OSError, GitmirrorError) as error:
            self._discard(guest, opened)
            if not opened:
                os.close(directory)
            if isinstance(error, GitmirrorError):
                raise
            raise explained(error, guest.unix, settings.socket_group) from None
        return opened

    def _named(self, guest: Guest, opened: Iterable[_Opened]) -> None:
        """Gives the sockets their names. Raises GitmirrorError."""
        for each in opened:
            if each.kept:
                continue
            directory, temporary = each.file.directory, temporary_name(guest, PORTS[each.port])
            try:
                os.link(temporary, each.file.name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
                os.unlink(temporary, dir_fd=directory)
            except OSError as error:
                raise explained(error, each.path, "") from None

    def _discard(self, guest: Guest, opened: Iterable[_Opened]) -> None:
        """Removes what `_bound` and `_named` have made."""
        opened = list(opened)
        for each in opened:
            each.file.remove()
            temporary = SocketFile(each.file.directory, temporary_name(guest, PORTS[each.port]), each.file.identity)
            temporary.remove()
            with contextlib.suppress(OSError):
                each.listening.shutdown(socket.SHUT_RDWR)
            each.listening.close()
            if each.kept and self._keeper is not None:
                self._keeper.drop(_kept_name(guest.id, each.port, each.file.identity))
        _close_directory(opened)

    def _clear(
        self, directory: int, guest: Guest, remembered: Mapping[str, str], but: Iterable[str] = frozenset()
    ) -> None:
        """Removes the files that a killed `serve` left, and none of anybody else."""
        name = Path(guest.unix or "").name
        for port, number in PORTS.items():
            # The name is made from what only this guest's row has, so what has it was made here.
            remove_dead(directory, temporary_name(guest, number))
            identity = remembered.get(f"{guest.unix}_{number}")
            if port in but or identity is None or not is_file(directory, f"{name}_{number}", identity):
                continue
            if is_dead(directory, f"{name}_{number}"):
                SocketFile(directory, f"{name}_{number}", identity).remove()

    # -- what the service manager keeps ----------------------------------------------------------------------

    def _kept(self, guest: Guest, port: str, directory: int, group: int) -> _Opened | None:
        """The kept socket of a guest if it still is the one of the file at its path. Others are given up."""
        path = f"{guest.unix}_{PORTS[port]}"
        name = Path(path).name
        found = None
        for kept in [each for each in self._inherited if each.startswith(f"{KEPT_PREFIX}{guest.id}-{port}-")]:
            identity = kept.removeprefix(f"{KEPT_PREFIX}{guest.id}-{port}-").replace("-", ":")
            if found is None and is_file(directory, name, identity):
                grant(directory, name, MODE, group)
                listening = self._inherited.pop(kept)
                found = _Opened(port, path, listening, SocketFile(directory, name, identity), kept=True)
            else:
                self._refuse(kept)
        return found

    def _hand_over(self, guest_id: int) -> None:
        for each in self._open[guest_id]:
            if self._keeper is not None and not each.kept:
                each.kept = self._keeper.keep(_kept_name(guest_id, each.port, each.file.identity), each.listening)

    def _refuse_inherited(self, guest_id: int) -> None:
        for name in [name for name in self._inherited if name.startswith(f"{KEPT_PREFIX}{guest_id}-")]:
            self._refuse(name)

    def _refuse(self, name: str) -> None:
        """Ends a kept socket for all who hold it: shut down, it refuses connections even before it is closed."""
        listening = self._inherited.pop(name)
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        if self._keeper is not None:
            self._keeper.drop(name)


def _kept_name(guest_id: int, port: str, identity: str) -> str:
    """The name under which the service manager keeps a socket. It has no colon, and tells which file the socket is."""
    return f"{KEPT_PREFIX}{guest_id}-{port}-{identity.replace(':', '-')}"


def _is_at(path: str, identity: str) -> bool:
    with contextlib.suppress(OSError):
        return identity_of(os.stat(path, follow_symlinks=False)) == identity
    return False


def _close_directory(opened: Iterable[_Opened]) -> None:
    for directory in {each.file.directory for each in opened}:
        os.close(directory)
