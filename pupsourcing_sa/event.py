"""Events: what is handed in to be appended, and what comes back out of the log.

`Event` is checked and encoded once, when it is built. `PersistedEvent` keeps the values as the driver delivered them
and decodes each when it is asked for: most handlers look at few of them, and decoding is what reading costs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, NoReturn, Self, TypeAlias, final
from uuid import UUID

from pupsourcing_sa._checks import MAX_INTEGER, check_int, check_text, check_type

__all__ = ["AppendResult", "Event", "PersistedEvent", "Stream"]

_Row: TypeAlias = tuple[
    int, str, str, int, bytes, str, int, bytes, str | None, str | None, str | None, str | None, bytes
]

_NO_METADATA: Final[Mapping[str, Any]] = MappingProxyType({})
#: PostgreSQL counts its timestamps from here, in microseconds.
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

if sys.version_info >= (3, 14):
    from uuid import uuid7 as _uuid7
else:

    def _uuid7() -> UUID:
        """RFC 9562, 5.7: 48 bits of Unix milliseconds, then random bits."""
        random = int.from_bytes(os.urandom(10), "big")
        bits = (time.time_ns() // 1_000_000) << 80 | random
        return UUID(int=bits & ~(0xF000 << 64) & ~(0xC000 << 48) | 0x7000 << 64 | 0x8000 << 48)


class _Immutable:
    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable")


_set = object.__setattr__
_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
#: A string as JSON, in quotes.
_quote = json.encoder.encode_basestring


def _encode_json(name: str, value: object) -> str:
    try:
        text = _to_json(value)
        text.encode()
    except TypeError as error:
        raise TypeError(f"{name} must be JSON: {error}") from None
    except (ValueError, RecursionError) as error:  # NaN, circular or too deep, lone surrogates
        raise ValueError(f"{name} must be JSON: {error}") from None
    return text


def has_nul(text: str) -> bool:
    """Whether a string in JSON has a NUL character, which JSONB cannot store."""
    return "\\u0000" in text.replace("\\\\", "")  # an escaped backslash before u0000 is no NUL


def _encode_metadata(metadata: object) -> str | None:
    check_type("metadata", metadata, Mapping, "a mapping")
    assert isinstance(metadata, Mapping)
    if not metadata:
        return None
    for key in metadata:
        if not isinstance(key, str):
            raise TypeError(f"metadata keys must be str, not {type(key).__name__}")
    text = _encode_json("metadata", dict(metadata))
    if has_nul(text):
        raise ValueError("metadata must not contain NUL characters, which JSONB cannot store")
    return text


@final
class Event(_Immutable):
    """An event to be appended: what happened, to which aggregate.

    Args:
        aggregate_type: kind of the aggregate, such as ``"User"``.
        aggregate_id: which aggregate of that kind.
        event_type: what happened, such as ``"UserRegistered"``.
        payload: ``bytes`` are stored as they are; any other value is encoded to UTF-8 JSON, once, here.
        event_version: version of the payload's schema, 1 or more.
        event_id: unique in the log; a new UUIDv7 by default.
        metadata: anything about the event that is not part of it; a mapping that JSON can carry.
        trace_id: id of the trace that the event was recorded in.
        correlation_id: what the event belongs to, such as the id of a request or a process.
        causation_id: what caused the event, such as the id of a command or of another event.
        created_at: when it happened, with a time zone; now by default.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a value that cannot be stored. Both name the argument.

    Immutable, hashable, and equal to an event with equal values.

    >>> event = Event(
    ...     aggregate_type="User", aggregate_id="u1", event_type="UserRegistered", payload={"email": "ann@example.org"}
    ... )
    >>> event.payload
    b'{"email":"ann@example.org"}'
    """

    __slots__ = (
        "_json",
        "_metadata",
        "_metadata_json",
        "aggregate_id",
        "aggregate_type",
        "causation_id",
        "correlation_id",
        "created_at",
        "event_id",
        "event_type",
        "event_version",
        "payload",
        "trace_id",
    )

    aggregate_type: str
    aggregate_id: str
    event_type: str
    payload: bytes
    event_version: int
    event_id: UUID
    trace_id: str | None
    correlation_id: str | None
    causation_id: str | None
    created_at: datetime
    _json: str
    _metadata_json: str | None
    _metadata: Mapping[str, Any]

    def __init__(
        self,
        *,
        aggregate_type: str,
        aggregate_id: str,
        event_type: str,
        payload: Any,
        event_version: int = 1,
        event_id: UUID | None = None,
        metadata: Mapping[str, Any] = _NO_METADATA,
        trace_id: str | None = None,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        created_at: datetime | None = None,
    ) -> None:
        check_text("aggregate_type", aggregate_type)
        check_text("aggregate_id", aggregate_id)
        check_text("event_type", event_type)
        check_text("trace_id", trace_id, is_optional=True)
        check_text("correlation_id", correlation_id, is_optional=True)
        check_text("causation_id", causation_id, is_optional=True)
        check_int("event_version", event_version, minimum=1, maximum=MAX_INTEGER)
        if event_id is None:
            event_id = _uuid7()
        else:
            check_type("event_id", event_id, UUID, "a uuid.UUID")
        if created_at is None:
            created_at = datetime.now(UTC)
        else:
            check_type("created_at", created_at, datetime, "a datetime")
            if created_at.utcoffset() is None:
                raise ValueError("created_at must have a time zone, such as datetime.UTC")
        try:
            timestamp = created_at.astimezone(UTC).isoformat()
        except OverflowError:
            raise ValueError(f"created_at must be between the years 1 and 9999 in UTC, not {created_at}") from None
        if isinstance(payload, (bytes, bytearray, memoryview)):
            payload = bytes(payload)
        else:
            payload = _encode_json("payload", payload).encode()
        _set(self, "aggregate_type", aggregate_type)
        _set(self, "aggregate_id", aggregate_id)
        _set(self, "event_type", event_type)
        _set(self, "payload", payload)
        _set(self, "event_version", event_version)
        _set(self, "event_id", event_id)
        _set(self, "trace_id", trace_id)
        _set(self, "correlation_id", correlation_id)
        _set(self, "causation_id", causation_id)
        _set(self, "created_at", created_at)
        metadata_json = None if metadata is _NO_METADATA else _encode_metadata(metadata)
        _set(self, "_metadata_json", metadata_json)
        # What an append sends of it besides the payload: the rest of a JSON object, encoded here, once.
        rest = f'"event_id":"{event_id}","event_type":{_quote(event_type)},"event_version":{event_version},'
        if trace_id is not None:
            rest += f'"trace_id":{_quote(trace_id)},'
        if correlation_id is not None:
            rest += f'"correlation_id":{_quote(correlation_id)},'
        if causation_id is not None:
            rest += f'"causation_id":{_quote(causation_id)},'
        if metadata_json is not None:
            rest += f'"metadata":{metadata_json},'
        _set(self, "_json", f'{rest}"created_at":"{timestamp}"}}')

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata as it will be read back; read-only."""
        return _decode_metadata(self, self._metadata_json)

    def json(self) -> Any:
        """The payload, decoded as JSON; a fresh value each time."""
        return json.loads(self.payload)

    def _values(self) -> tuple[object, ...]:
        return (
            self.event_id,
            self.aggregate_type,
            self.aggregate_id,
            self.event_type,
            self.event_version,
            self.payload,
            self.trace_id,
            self.correlation_id,
            self.causation_id,
            self.created_at,
            self.metadata,
        )

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, Event) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.event_id)

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: getattr(self, name) for name in self.__slots__ if not name.startswith("_")}
        return _restore_event, (state, self._metadata_json)

    def __repr__(self) -> str:
        return (
            f"Event(aggregate_type={self.aggregate_type!r}, aggregate_id={self.aggregate_id!r}, "
            f"event_type={self.event_type!r}, event_id={str(self.event_id)!r}, payload=<{len(self.payload)} bytes>)"
        )


def _restore_event(state: dict[str, Any], metadata_json: str | None) -> Event:
    return Event(**state, metadata=_NO_METADATA if metadata_json is None else json.loads(metadata_json))


def _decode_metadata(event: Event | PersistedEvent, text: str | None) -> Mapping[str, Any]:
    try:
        return event._metadata
    except AttributeError:  # not decoded yet
        value = None if text is None else json.loads(text)
        # A log that others write to may hold JSON that is no object: given as it is.
        metadata = MappingProxyType(value or {}) if isinstance(value, dict | None) else value
        _set(event, "_metadata", metadata)
        return metadata


@final
class PersistedEvent(_Immutable):
    """An event as the log holds it: an `Event` with its place in the aggregate and in the log.

    The store makes these; the constructor is for tests of handlers and takes what `Event` takes.

    Attributes:
        global_position: place in the log, 1 or more, increasing but not without holes.
        aggregate_version: place in the aggregate, counted from 1 without holes.

    Immutable, hashable, can be pickled, and equal to an event with equal values.
    """

    __slots__ = ("_metadata", "_row")

    _row: _Row
    _metadata: Mapping[str, Any]

    def __init__(self, *, global_position: int, aggregate_version: int, **event: Any) -> None:
        check_int("global_position", global_position, minimum=1)
        check_int("aggregate_version", aggregate_version, minimum=1)
        _set(self, "_row", _row(Event(**event), global_position, aggregate_version))

    @classmethod
    def _from_row(cls, row: _Row) -> Self:
        """Wrap a row as the store's statements select it, in the order of `_row`."""
        event = cls.__new__(cls)
        _set_row(event, row)
        return event

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
    def metadata(self) -> Mapping[str, Any]:
        """The metadata, decoded on first use; read-only, empty when there is none."""
        return _decode_metadata(self, self._row[11])

    @property
    def created_at(self) -> datetime:
        """When it happened, in UTC."""
        return _EPOCH + timedelta(microseconds=int.from_bytes(self._row[12], "big", signed=True))

    def json(self) -> Any:
        """The payload, decoded as JSON; a fresh value each time."""
        return json.loads(self._row[7])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PersistedEvent):
            return NotImplemented
        mine, theirs = self._row, other._row
        # The text of equal JSON may differ: PostgreSQL reorders the keys of an object.
        return mine[:11] == theirs[:11] and mine[12] == theirs[12] and self.metadata == other.metadata

    def __hash__(self) -> int:
        return hash(self._row[4])

    def __reduce__(self) -> tuple[Any, ...]:
        return PersistedEvent._from_row, (self._row,)

    def __repr__(self) -> str:
        return (
            f"PersistedEvent(global_position={self.global_position}, aggregate_type={self.aggregate_type!r}, "
            f"aggregate_id={self.aggregate_id!r}, aggregate_version={self.aggregate_version}, "
            f"event_type={self.event_type!r}, event_id={str(self.event_id)!r}, payload=<{len(self.payload)} bytes>)"
        )


#: Faster than object.__setattr__, which is most of what making an event costs.
_set_row = PersistedEvent.__dict__["_row"].__set__


def _row(event: Event, global_position: int, aggregate_version: int) -> _Row:
    """The row that an event becomes when it is appended."""
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
        event._metadata_json,
        ((event.created_at - _EPOCH) // _MICROSECOND).to_bytes(8, "big", signed=True),
    )


@dataclass(frozen=True, slots=True)
class Stream:
    """The events of one aggregate, or a range of them, in version order, or in reverse where that was asked for."""

    aggregate_type: str
    aggregate_id: str
    events: tuple[PersistedEvent, ...]

    @property
    def version(self) -> int:
        """Highest version of the events here; 0 when there are none."""
        return max(self.events[0].aggregate_version, self.events[-1].aggregate_version) if self.events else 0

    @property
    def is_empty(self) -> bool:
        return not self.events

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[PersistedEvent]:
        return iter(self.events)

    def __repr__(self) -> str:
        return (
            f"Stream(aggregate_type={self.aggregate_type!r}, aggregate_id={self.aggregate_id!r}, "
            f"version={self.version}, events=<{len(self)}>)"
        )


@dataclass(frozen=True)
class AppendResult:
    """What an append wrote, in the caller's still open transaction.

    Attributes:
        global_positions: the position of each event, in order.
        from_version: the aggregate's version before the append, 0 when it is new.
        to_version: its version after the append.
    """

    global_positions: tuple[int, ...]
    from_version: int
    to_version: int
    _appended: tuple[Event, ...]

    @cached_property
    def events(self) -> tuple[PersistedEvent, ...]:
        """The events as the log holds them, made on first use."""
        numbered = zip(
            self._appended, self.global_positions, range(self.from_version + 1, self.to_version + 1), strict=True
        )
        return tuple(PersistedEvent._from_row(_row(*place)) for place in numbered)

    def __repr__(self) -> str:
        return (
            f"AppendResult(from_version={self.from_version}, to_version={self.to_version}, "
            f"global_positions={self.global_positions!r})"
        )
