"""The event that the log returns.

It keeps the values as the driver returned them and decodes each on access. Decoding is most of the cost of reading, and
most handlers use few of the values.

The same is true of ``data``: the registry decodes the payload on first use. Upcasters may turn one row of the log into
several objects, or none. `PersistedEvent.parts` returns one event for each object; all of them are the same row.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from itertools import repeat
from typing import Any, Final, Generic, Protocol, Self, TypeAlias, final
from uuid import UUID

from typing_extensions import TypeVar  # a dependency of SQLAlchemy; typing has defaults of type variables from 3.13

from pupsourcing_sa._checks import check_int
from pupsourcing_sa.context import caused_by
from pupsourcing_sa.errors import EventDecodingError, PayloadError, UnreadableEventError
from pupsourcing_sa.event._encoded import EncodedEvent, set_slot
from pupsourcing_sa.event._event import Event

__all__ = ["EventDecoder", "PersistedEvent"]

_E_co = TypeVar("_E_co", default=Any, covariant=True)

#: The values in the order of the properties below; ids and times in PostgreSQL's binary format.
_Row: TypeAlias = tuple[
    int, str, str, int, bytes, str, int, bytes, str | None, str | None, str | None, str | None, bytes
]

#: PostgreSQL stores a timestamp as the number of microseconds since this moment.
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
#: The largest and the smallest number mean infinite times.
_INFINITIES: Final = {2**63 - 1: "infinity", -(2**63): "-infinity"}
_MICROSECOND: Final = timedelta(microseconds=1)


class EventDecoder(Protocol):
    """Decodes stored payloads; an `EventRegistry`."""

    @property
    def decoders(self) -> Mapping[tuple[str, int], Callable[[bytes], Any]]:
        """Decoders of current versions, by event type and version. They raise errors of their own."""

    def is_known(self, event_type: str, /) -> bool: ...
    def decode(self, event_type: str, event_version: int, payload: bytes, /) -> tuple[Any, ...]: ...


class _Several:
    """The objects that upcasters made of one row: none, or more than one."""

    __slots__ = ("objects",)

    def __init__(self, objects: tuple[Any, ...]) -> None:
        self.objects = objects


_NOT_DECODED: Final = _Several(())


@final
class PersistedEvent(EncodedEvent, Generic[_E_co]):
    """An event in the log: an `Event` with its position in the log and its version in the aggregate.

    The store creates persisted events. The constructor is for tests of handlers; it also takes the arguments of
    `Event`, and ``registry``, an `EventRegistry` for ``data``.

    ``Recorded`` is another name of this class, for annotations: ``data`` of a ``Recorded[OrderPlaced]`` is an
    ``OrderPlaced``.

    Attributes:
        global_position: position in the log, 1 or more. Positions increase and may have gaps.
        aggregate_version: version of the aggregate after this event. Versions start at 1 and have no gaps.

    Persisted events are immutable and hashable and can be pickled. Two are equal if their values are.
    """

    _state = ("_row",)
    __slots__ = (*_state, "_data", "_decoder", "_part")

    _row: _Row
    # Without a registry these are not set, so they cost nothing.
    _decoder: EventDecoder
    _data: Any
    _part: int

    def __init__(
        self, *, global_position: int, aggregate_version: int, registry: EventDecoder | None = None, **event: Any
    ) -> None:
        global_position = check_int("global_position", global_position, minimum=1)
        aggregate_version = check_int("aggregate_version", aggregate_version, minimum=1)
        set_slot(self, "_row", _row(Event(**event), global_position, aggregate_version))
        if registry is not None:
            _set_decoder(self, registry)
            _set_data(self, _NOT_DECODED)

    @classmethod
    def from_row(cls, row: _Row, decoder: EventDecoder | None = None) -> Self:
        """Wrap a row that a statement of the store returned. Only this library calls it.

        Args:
            row: the values in the order of the properties below; ids and times in PostgreSQL's binary format.
            decoder: decodes the payload.
        """
        event = cls.__new__(cls)
        _set_row(event, row)
        if decoder is not None:
            _set_decoder(event, decoder)
            _set_data(event, _NOT_DECODED)
        return event

    @classmethod
    def from_rows(cls, rows: Sequence[_Row], decoder: EventDecoder | None = None) -> list[Self]:
        """Wrap rows as `from_row` does, in a fraction of its time: no Python code runs for a row."""
        events: list[Self] = list(map(cls.__new__, repeat(cls, len(rows))))
        deque(map(_set_row, events, rows), maxlen=0)
        if decoder is not None:
            deque(map(_set_decoder, events, repeat(decoder)), maxlen=0)
            deque(map(_set_data, events, repeat(_NOT_DECODED)), maxlen=0)
        return events

    @classmethod
    def _from_event(
        cls, event: Event, global_position: int, aggregate_version: int, decoder: EventDecoder | None = None
    ) -> Self:
        """Return the event as the log holds it after it was appended."""
        return cls.from_row(_row(event, global_position, aggregate_version), decoder)

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
    def data(self) -> _E_co:
        """The payload as an object of its registered class, decoded on first use. Each access returns the same object.

        Raises:
            EventDecodingError: the payload does not match the class, an upcaster failed, or upcasters turned the event
                into several or none: use `parts`.
            UnknownEventTypeError: the event type is not registered, or it is retired.
            RuntimeError: the store has no registry.
        """
        data: _E_co | _Several
        try:
            data = self._data
        except AttributeError:
            raise self._without_registry() from None
        if data is _NOT_DECODED:
            # Most payloads take this way, in which a call of Python would cost as much as the codec.
            row = self._row
            decode = self._decoder.decoders.get((row[5], row[6]))
            if decode is not None:
                try:
                    decoded: _E_co = decode(row[7])
                except Exception:  # noqa: BLE001
                    pass  # decoded again below, by a method that explains the error
                else:
                    _set_data(self, decoded)
                    return decoded
            data = self._decoded()
        if isinstance(data, _Several):
            count = len(data.objects)
            raise self._undecodable(None, f"upcasters turned the event into {count} events; use parts()")
        return data

    @property
    def is_raw(self) -> bool:
        """True if the event has no ``data``: its type is unknown or retired, or the store has no registry."""
        decoder = getattr(self, "_decoder", None)
        return decoder is None or not decoder.is_known(self._row[5])

    @property
    def part(self) -> int:
        """Number of this event among those that upcasters made of one row of the log, from 0."""
        return getattr(self, "_part", 0)

    def parts(self) -> tuple[PersistedEvent[Any], ...]:
        """Return the events that upcasters made of this row of the log. Usually this is the event itself.

        The parts have the same id, position and version, and differ in ``part`` and ``data``.

        Raises:
            EventDecodingError, UnknownEventTypeError, RuntimeError: as for `data`.
        """
        try:
            data = self._data
        except AttributeError:
            raise self._without_registry() from None
        if data is _NOT_DECODED:
            data = self._decoded()
        if type(data) is not _Several:
            return (self,)
        parts = []
        for number, found in enumerate(data.objects):
            part: PersistedEvent[Any] = PersistedEvent.from_row(self._row, self._decoder)
            _set_data(part, found)
            set_slot(part, "_part", number)
            parts.append(part)
        return tuple(parts)

    def as_cause(self) -> AbstractContextManager[None]:
        """Return a context manager. Events that are created in its block have this event as their cause.

        The worker does this for handlers of single events. Use it in handlers of batches.
        """
        return caused_by(self)

    def _decoded(self) -> Any:
        """Return the data, or `_Several` objects, and keep it."""
        row = self._row
        try:
            objects = self._decoder.decode(row[5], row[6], row[7])
        except PayloadError as error:
            raise self._undecodable(error.path, error.problem) from error.__cause__
        data = objects[0] if len(objects) == 1 else _Several(objects)
        _set_data(self, data)
        return data

    def _without_registry(self) -> RuntimeError:
        return RuntimeError(
            "the event has no data, because its store has no registry, or it was unpickled; pass registry= to the store"
        )

    def _undecodable(self, path: str | None, problem: str) -> EventDecodingError:
        row = self._row
        return EventDecodingError(row[0], self.event_id, row[5], row[6], path, problem)

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
        are_equal = mine[:11] == theirs[:11] and mine[12] == theirs[12] and self.part == other.part
        return are_equal and self.metadata == other.metadata

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
_set_decoder = PersistedEvent.__dict__["_decoder"].__set__
_set_data = PersistedEvent.__dict__["_data"].__set__


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
