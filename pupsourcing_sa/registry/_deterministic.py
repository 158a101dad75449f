"""Ids of events that follow from another event."""

from __future__ import annotations

from typing import Protocol
from uuid import UUID, uuid5

from pupsourcing_sa._checks import check_int, check_text

__all__ = ["deterministic_id"]


class _Cause(Protocol):
    @property
    def event_id(self) -> UUID: ...
    @property
    def part(self) -> int: ...


def deterministic_id(event: _Cause, name: str, n: int = 0) -> UUID:
    """Return the id of an event that follows from another one: always the same id for the same event, name and number.

    A reaction that runs twice then appends its event once. The second append is a `DuplicateEventError`, or, with
    ``idempotent=True``, returns the first event. The id does not depend on the consumer, so you can rename it.

    Args:
        event: the event that a handler got.
        name: name of the effect, such as ``"charge"``.
        n: number of the effect, if the event has several of this name.

    Raises:
        TypeError, ValueError: an argument is invalid.
    """
    name, n = check_text("name", name), check_int("n", n)
    part = f"/{event.part}" if event.part else ""
    return uuid5(event.event_id, f"{n}{part}:{name}")
