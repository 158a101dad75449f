"""Pages: events that were read in order, and the reason why a page ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from pupsourcing_sa.event import PersistedEvent

__all__ = ["ByteLimit", "Page"]

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
    def of(cls, rows: Sequence[Any], limit: int | None, *, is_limited: bool) -> Page:
        """Return the page of a statement's rows.

        Args:
            rows: the rows that the driver returned.
            limit: maximum number of rows; ``None`` for no limit.
            is_limited: the statement has a byte limit.
        """
        end = len(rows)
        if is_limited and None in (payloads := [row[_PAYLOAD] for row in rows]):
            end = payloads.index(None)
        is_cut = end < len(rows)
        return cls(PersistedEvent.from_rows(rows[:end]), is_cut, is_cut or len(rows) == limit)
