"""Carries out one order on several things: the failure of one does not stop the others, and all are told."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from appliance.core.errors import GitmirrorError


@dataclass(frozen=True)
class Order:
    """What is to be done to one thing: `key` tells its row apart, and `name` is for people. `work` may block."""

    key: Hashable
    name: str
    work: Callable[[], object]


@dataclass(frozen=True)
class Batch:
    """What became of the orders: the keys of those that were carried out, and the names and errors of the others."""

    done: tuple[Hashable, ...]
    failed: tuple[tuple[str, GitmirrorError], ...]


def carry_out(orders: Sequence[Order]) -> Batch:
    """Carries out one order after the other."""
    done: list[Hashable] = []
    failed: list[tuple[str, GitmirrorError]] = []
    for order in orders:
        try:
            order.work()
        except GitmirrorError as error:
            failed.append((order.name, error))
        except Exception as error:
            # A defect in one of them must not leave the others without an answer.
            failed.append((order.name, GitmirrorError(repr(error), hint="this is a bug in the live view")))
        else:
            done.append(order.key)
    return Batch(tuple(done), tuple(failed))
