"""The event that an application appends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, final
from uuid import UUID

from pupsourcing_sa._checks import MAX_INTEGER, check_int, check_text, check_type
from pupsourcing_sa.context import NO_CONTEXT, current_event_context
from pupsourcing_sa.event._encoded import EncodedEvent, set_slot
from pupsourcing_sa.event.encoding import encode_json, encode_metadata, quote_json, uuid7

__all__ = ["Event"]

_NO_METADATA: Final[Mapping[str, Any]] = MappingProxyType({})


@final
class Event(EncodedEvent):
    """An event to append: something that happened to an aggregate.

    Args:
        aggregate_type: kind of the aggregate, such as ``"User"``.
        aggregate_id: id of the aggregate, unique among those of its type.
        event_type: what happened, such as ``"UserRegistered"``.
        payload: ``bytes`` are stored unchanged. The constructor encodes any other value to UTF-8 JSON.
        event_version: version of the payload's schema, 1 or more.
        event_id: unique in the log; by default a new UUIDv7.
        metadata: a mapping that JSON can represent, for data about the event that is not part of it.
        trace_id: id of the trace in which the event was recorded.
        correlation_id: id of the request or process that the event belongs to.
        causation_id: id of the command or event that caused this event.
        created_at: when it happened, with a time zone; by default the current time.

    Raises:
        TypeError: an argument has the wrong type. The message names the argument.
        ValueError: an argument cannot be stored. The message names the argument.

    Ids and metadata that are not given come from the surrounding `event_context`, if there is one.

    Values of subclasses, such as members of an ``(int, Enum)``, become values of the types above. Microseconds are the
    unit of ``created_at``; a subclass of datetime with a finer time is refused.

    Events are immutable and hashable. Two events are equal if their values are.

    >>> event = Event(
    ...     aggregate_type="User", aggregate_id="u1", event_type="UserRegistered", payload={"email": "ann@example.org"}
    ... )
    >>> event.payload
    b'{"email":"ann@example.org"}'
    """

    _state = (
        "aggregate_type",
        "aggregate_id",
        "event_type",
        "payload",
        "event_version",
        "event_id",
        "trace_id",
        "correlation_id",
        "causation_id",
        "created_at",
        "metadata_json",
        "append_json",
    )
    __slots__ = _state

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
    #: The metadata as JSON, for the store.
    metadata_json: str | None
    #: The end of the JSON object that an append sends for this event, for the store.
    append_json: str

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
        context = current_event_context()
        if context is not NO_CONTEXT:
            trace_id = context.trace_id if trace_id is None else trace_id
            correlation_id = context.correlation_id if correlation_id is None else correlation_id
            causation_id = context.causation_id if causation_id is None else causation_id
            if context.metadata:
                check_type("metadata", metadata, Mapping, "a mapping")
                metadata = {**context.metadata, **metadata}
        aggregate_type = check_text("aggregate_type", aggregate_type)
        aggregate_id = check_text("aggregate_id", aggregate_id)
        event_type = check_text("event_type", event_type)
        event_version = check_int("event_version", event_version, minimum=1, maximum=MAX_INTEGER)
        if event_id is None:
            event_id = uuid7()
        elif type(event_id) is not UUID:
            check_type("event_id", event_id, UUID, "a uuid.UUID")
            event_id = UUID(int=event_id.int)
        if created_at is None:
            created_at = datetime.now(UTC)
        else:
            if type(created_at) is not datetime:
                check_type("created_at", created_at, datetime, "a datetime")
                created_at = _plain_datetime(created_at)
            if created_at.utcoffset() is None:
                raise ValueError("created_at must have a time zone, such as datetime.UTC")
        try:
            timestamp = created_at.astimezone(UTC).isoformat()
        except OverflowError:
            raise ValueError(f"created_at must be between the years 1 and 9999 in UTC, not {created_at}") from None
        if type(payload) is not bytes:
            if isinstance(payload, (bytes, bytearray, memoryview)):
                # bytes() alone may return an instance of a subclass.
                payload = bytes(memoryview(payload))
            else:
                payload = encode_json("payload", payload).encode()
        if trace_id is not None:
            trace_id = check_text("trace_id", trace_id, is_optional=True)
        if correlation_id is not None:
            correlation_id = check_text("correlation_id", correlation_id, is_optional=True)
        if causation_id is not None:
            causation_id = check_text("causation_id", causation_id, is_optional=True)
        set_slot(self, "aggregate_type", aggregate_type)
        set_slot(self, "aggregate_id", aggregate_id)
        set_slot(self, "event_type", event_type)
        set_slot(self, "payload", payload)
        set_slot(self, "event_version", event_version)
        set_slot(self, "event_id", event_id)
        set_slot(self, "trace_id", trace_id)
        set_slot(self, "correlation_id", correlation_id)
        set_slot(self, "causation_id", causation_id)
        set_slot(self, "created_at", created_at)
        metadata_json = None if metadata is _NO_METADATA else encode_metadata(metadata)
        set_slot(self, "metadata_json", metadata_json)
        # It is encoded once, even if the append is retried.
        rest = f'"event_id":"{event_id!s}","event_type":{quote_json(event_type)},"event_version":{event_version},'
        if trace_id is not None:
            rest += f'"trace_id":{quote_json(trace_id)},'
        if correlation_id is not None:
            rest += f'"correlation_id":{quote_json(correlation_id)},'
        if causation_id is not None:
            rest += f'"causation_id":{quote_json(causation_id)},'
        if metadata_json is not None:
            rest += f'"metadata":{metadata_json},'
        set_slot(self, "append_json", f'{rest}"created_at":"{timestamp}"}}')

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata as the log will return it; read-only."""
        return self._decoded_metadata(self.metadata_json)

    def json(self) -> Any:
        """Decode the payload as JSON. Each call returns a new value."""
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

    def __repr__(self) -> str:
        return (
            f"Event(aggregate_type={self.aggregate_type!r}, aggregate_id={self.aggregate_id!r}, "
            f"event_type={self.event_type!r}, event_id={str(self.event_id)!r}, payload=<{len(self.payload)} bytes>)"
        )


def _plain_datetime(value: datetime) -> datetime:
    """Return the equal value of datetime itself, for a value of a subclass."""
    problem = ""
    try:
        plain = datetime(
            value.year,
            value.month,
            value.day,
            value.hour,
            value.minute,
            value.second,
            value.microsecond,
            value.tzinfo,
            fold=value.fold,
        )
        if plain == value:
            return plain
    except (TypeError, ValueError, OverflowError) as error:
        problem = f": {error}"
    raise ValueError(f"created_at must be a time that datetime can represent, not {value!r}{problem}")
