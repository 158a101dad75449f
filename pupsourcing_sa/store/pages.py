"""Pages: events that were read in order, and the reason why a page ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from pupsourcing_sa.errors import PayloadError
from pupsourcing_sa.event import EventDecoder, PersistedEvent
from pupsourcing_sa.registry import EventRegistry

__all__ = ["ByteLimit", "EventList", "Page", "expanded"]

#: Index of the payload in a row. Only a row that does not fit has NULL here.
_PAYLOAD: Final = 7


class ByteLimit(Enum):
    """The way in which a statement limits the bytes of a page. The bytes of an event are its payload and its metadata.

    In both cases the first row that does not fit, if there is one, comes without its payload and metadata.
    """

    #: An event fits if it alone has at most ``max_bytes``. This costs nothing.
    EACH = "each"
    #: An event fits if it and the events before it have at most ``max_bytes``; the first one always fits. The statement
    #: measures every event of the page, and reads no BYTEA payload that it does not return.
    TOTAL = "total"


@dataclass(frozen=True, slots=True)
class Page:
    """Events in order.

    Attributes:
        events: the events.
        is_cut: the next event did not fit.
        has_more: other events may follow: the next one did not fit, or the page has reached its limit.
    """

    events: list[PersistedEvent]
    is_cut: bool
    has_more: bool

    @classmethod
    def of(
        cls, rows: Sequence[Any], limit: int | None, *, is_limited: bool, decoder: EventDecoder | None = None
    ) -> Page:
        """Return the page of a statement's rows.

        Args:
            rows: the rows that the driver returned.
            limit: maximum number of rows; ``None`` for no limit.
            is_limited: the statement has a byte limit.
            decoder: decodes the payloads, for ``data``.
        """
        end = len(rows)
        if is_limited and None in (payloads := [row[_PAYLOAD] for row in rows]):
            end = payloads.index(None)
        is_cut = end < len(rows)
        return cls(PersistedEvent.from_rows(rows[:end], decoder), is_cut, is_cut or len(rows) == limit)


class EventList(list[PersistedEvent]):
    """Events of the log that were read together.

    Attributes:
        last_position: position of the last row of the log that was read; ``after`` if there was none. A follower
            continues here. Upcasters may have turned the last rows into no events.
    """

    def __init__(self, events: Iterable[PersistedEvent], last_position: int) -> None:
        super().__init__(events)
        self.last_position = last_position


def expanded(
    events: list[PersistedEvent], registry: EventRegistry | None, *, backwards: bool = False
) -> list[PersistedEvent]:
    """Return the events that upcasters make of these rows. If the rows are in descending order, so are the parts.

    A row that cannot be decoded remains, and raises at ``data``.
    """
    split_types = frozenset() if registry is None else registry.split_types
    if not split_types:
        return events
    found: list[PersistedEvent] = []
    for event in events:
        if event.event_type in split_types:
            try:
                found += reversed(event.parts()) if backwards else event.parts()
                continue
            except PayloadError:
                pass
        found.append(event)
    return found
