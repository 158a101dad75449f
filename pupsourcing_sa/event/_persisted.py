"""The event that the log returns.

It keeps the values as the driver returned them and decodes each on access. Decoding is most of the cost of reading, and
most handlers use few of the values.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import repeat
from typing import Any, Final, Self, TypeAlias, final
from uuid import UUID

from pupsourcing_sa._checks import check_int
from pupsourcing_sa.errors import UnreadableEventError
from pupsourcing_sa.event._encoded import EncodedEvent, set_slot
from pupsourcing_sa.event._event import Event

__all__ = ["PersistedEvent"]

#: The values in the order of the properties below; ids and times in PostgreSQL's binary format.
_Row: TypeAlias = tuple[
    int, str, str, int, bytes, str, int, bytes, str | None, str | None, str | None, str | None, bytes
]

#: PostgreSQL stores a timestamp as the number of microseconds since this moment.
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
#: The largest and the smallest number mean infinite times.
_INFINITIES: Final = {2**63 - 1: "infinity", -(2**63): "-infinity"}
_MICROSECOND: Final = timedelta(microseconds=1)


@final
class PersistedEvent(EncodedEvent):
    """An event in the log: an `Event` with its position in the log and its version in the aggregate.

    The store creates persisted events. The constructor is for tests of handlers; it also takes the arguments of
    `Event`.

    Attributes:
        global_position: position in the log, 1 or more. Positions increase and may have gaps.
        aggregate_version: version of the aggregate after this event. Versions start at 1 and have no gaps.

    Persisted events are immutable and hashable and can be pickled. Two are equal if their values are.
    """

    _state = ("_row",)
    __slots__ = _state

    _row: _Row

    def __init__(self, *, global_position: int, aggregate_version: int, **event: Any) -> None:
        global_position = check_int("global_position", global_position, minimum=1)
        aggregate_version = check_int("aggregate_version", aggregate_version, minimum=1)
        set_slot(self, "_row", _row(Event(**event), global_position, aggregate_version))

    @classmethod
    def from_row(cls, row: _Row) -> Self:
        """Wrap a row that a statement of the store returned. Only this library calls it.

        Args:
            row: the values in the order of the properties below; ids and times in PostgreSQL's binary format.
        """
        event = cls.__new__(cls)
        _set_row(event, row)
        return event

    @classmethod
    def from_rows(cls, rows: Sequence[_Row]) -> list[Self]:
        """Wrap rows as `from_row` does, in a fraction of its time: no Python code runs for a row."""
        events: list[Self] = list(map(cls.__new__, repeat(cls, len(rows))))
        deque(map(_set_row, events, rows), maxlen=0)
        return events

    @classmethod
    def _from_event(cls, event: Event, global_position: int, aggregate_version: int) -> Self:
        """Return the event as the log holds it after it was appended."""
        return cls.from_row(_row(event, global_position, aggregate_version))

    @property
    def global_position(self) -> int:
        return self._row[0]

    @property
    def aggregate_type(self) -> str:
        return self._row[1]

    @property
    def aggregate_id(self) -> str:
        return self._row[2]

    @property
    def aggregate_version(self) -> int:
        return self._row[3]

    @property
    def event_id(self) -> UUID:
        return UUID(bytes=self._row[4])

    @property
    def event_type(self) -> str:
        return self._row[5]

    @property
    def event_version(self) -> int:
        return self._row[6]

    @property
    def payload(self) -> bytes:
        return self._row[7]

    @property
    def trace_id(self) -> str | None:
        return self._row[8]

    @property
    def correlation_id(self) -> str | None:
        return self._row[9]

    @property
    def causation_id(self) -> str | None:
        return self._row[10]

    @property
    def metadata_json(self) -> str | None:
        """The metadata as JSON, for the store."""
        return self._row[11]

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata, decoded on first use; read-only, and empty if the event has none.

        Raises:
            UnreadableEventError: another program wrote JSON that Python cannot read, such as a number of 5,000 digits.
        """
        try:
            return self._decoded_metadata(self._row[11])
        except (ValueError, RecursionError) as error:
            raise self._unreadable("metadata", str(error)) from None

    @property
    def created_at(self) -> datetime:
        """The time at which it happened, in UTC.

        Raises:
            UnreadableEventError: another program wrote a time that datetime cannot represent: ``infinity``,
                ``-infinity``, or outside the years 1 to 9999.
        """
        microseconds = int.from_bytes(self._row[12], "big", signed=True)
        try:
            return _EPOCH + timedelta(microseconds=microseconds)
        except OverflowError:
            time = _INFINITIES.get(microseconds, "outside the years 1 to 9999")
            raise self._unreadable("created_at", f"the time is {time}, which datetime cannot represent") from None

    def _unreadable(self, field: str, problem: str) -> UnreadableEventError:
        return UnreadableEventError(self._row[0], self.event_id, field, problem)

    def json(self) -> Any:
        """Decode the payload as JSON. Each call returns a new value."""
        return json.loads(self._row[7])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PersistedEvent):
            return NotImplemented
        mine, theirs = self._row, other._row
        # Equal JSON may differ as text, because PostgreSQL reorders the keys of an object.
        return mine[:11] == theirs[:11] and mine[12] == theirs[12] and self.metadata == other.metadata

    def __hash__(self) -> int:
        return hash(self._row[4])

    def __repr__(self) -> str:
        return (
            f"PersistedEvent(global_position={self.global_position}, aggregate_type={self.aggregate_type!r}, "
            f"aggregate_id={self.aggregate_id!r}, aggregate_version={self.aggregate_version}, "
            f"event_type={self.event_type!r}, event_id={str(self.event_id)!r}, payload=<{len(self.payload)} bytes>)"
        )


#: Setting the slot by its descriptor is faster than object.__setattr__, which would be most of the cost of from_row.
_set_row = PersistedEvent.__dict__["_row"].__set__


def _row(event: Event, global_position: int, aggregate_version: int) -> _Row:
    return (
        global_position,
        event.aggregate_type,
        event.aggregate_id,
        aggregate_version,
        event.event_id.bytes,
        event.event_type,
        event.event_version,
        event.payload,
        event.trace_id,
        event.correlation_id,
        event.causation_id,
        event.metadata_json,
        ((event.created_at - _EPOCH) // _MICROSECOND).to_bytes(8, "big", signed=True),
    )
