"""Arguments of an append: checks, and conversion to the parameters of the statements."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, repeat
from types import NoneType
from typing import Any, NoReturn
from uuid import UUID

from pupsourcing_sa._checks import check_text, check_type
from pupsourcing_sa.errors import DuplicateEventError, NoEventsError, OptimisticConcurrencyError
from pupsourcing_sa.event import Event
from pupsourcing_sa.event.encoding import for_jsonb, has_nul
from pupsourcing_sa.expected import AnyVersion, Exact, ExpectedVersion, NoStream
from pupsourcing_sa.registry import EventRegistry, NamedData

__all__ = ["Aggregate", "Append", "aggregate_parameter", "aggregates_of", "check_ids", "event_parameters", "starts_of"]


@dataclass(frozen=True, slots=True)
class Append:
    """Checked events of one aggregate, with its expected version."""

    expected: ExpectedVersion
    events: tuple[Event, ...]

    @classmethod
    def of(
        cls,
        expected_version: object,
        events: object,
        aggregate: tuple[str, str] | None = None,
        registry: EventRegistry | None = None,
        event_ids: Sequence[UUID] | None = None,
        *,
        needs_ids: bool = False,
    ) -> Append:
        """Check the arguments of a caller, and encode objects of registered classes.

        Args:
            expected_version, events, aggregate, event_ids: see `EventStore.append`.
            registry: the registered classes.
            needs_ids: refuse objects without ids, which would get other ids when the append is repeated.

        Raises:
            NoEventsError, DuplicateEventError, PayloadError, TypeError, ValueError: see `EventStore.append`.
        """
        if not isinstance(expected_version, (AnyVersion, NoStream, Exact)):
            hint = f"; write {expected_version.__name__}()" if isinstance(expected_version, type) else ""
            raise TypeError(
                "expected_version must be AnyVersion(), NoStream() or Exact(version), "
                f"not {type(expected_version).__name__}{hint}"
            )
        if isinstance(events, (Event, NamedData)):
            raise TypeError(f"events must be a sequence, such as [event], not a single {type(events).__name__}")
        if not isinstance(events, (list, tuple, Iterable)):
            raise TypeError(f"events must be a sequence of events, not {type(events).__name__}")
        if aggregate is not None:
            aggregate = _check_aggregate(aggregate)
        given = tuple(events)
        if not all(isinstance(event, Event) for event in given):
            given = _encoded(given, aggregate, registry, event_ids, needs_ids=needs_ids)
        elif event_ids is not None:
            raise TypeError("event_ids are for objects of registered classes; an Event has its own event_id")
        if not given:
            raise NoEventsError
        first = given[0]
        if aggregate not in (None, (first.aggregate_type, first.aggregate_id)):
            raise ValueError(
                f"aggregate must be that of the events, {(first.aggregate_type, first.aggregate_id)!r}, "
                f"not {aggregate!r}"
            )
        for event in given:
            if event.aggregate_id != first.aggregate_id or event.aggregate_type != first.aggregate_type:
                raise ValueError(
                    "events must be of one aggregate, not of "
                    f"{first.aggregate_type} {first.aggregate_id!r} and "
                    f"{event.aggregate_type} {event.aggregate_id!r}; append_many() takes several aggregates"
                )
        check_ids(given)
        return cls(expected_version, given)

    @property
    def aggregate(self) -> tuple[str, str]:
        first = self.events[0]
        return first.aggregate_type, first.aggregate_id

    @property
    def aggregate_type(self) -> str:
        return self.events[0].aggregate_type

    @property
    def aggregate_id(self) -> str:
        return self.events[0].aggregate_id

    def conflict(self, actual: int | None) -> OptimisticConcurrencyError:
        return OptimisticConcurrencyError(self.aggregate_type, self.aggregate_id, self.expected, actual)


def _check_aggregate(aggregate: object) -> tuple[str, str]:
    if not isinstance(aggregate, tuple) or len(aggregate) != 2:
        raise TypeError(f"aggregate must be a tuple (aggregate_type, aggregate_id), not {type(aggregate).__name__}")
    aggregate_type, aggregate_id = aggregate
    return check_text("aggregate_type", aggregate_type), check_text("aggregate_id", aggregate_id)


def _encoded(
    objects: Sequence[object],
    aggregate: tuple[str, str] | None,
    registry: EventRegistry | None,
    event_ids: Sequence[UUID] | None,
    *,
    needs_ids: bool,
) -> tuple[Event, ...]:
    """Make events of objects; those that are events already remain."""
    check_type("event_ids", event_ids, (Sequence, NoneType), "a sequence of uuid.UUID")
    if event_ids is not None and len(event_ids) != len(objects):
        raise ValueError(f"event_ids must have an id for each of the {len(objects)} events, not {len(event_ids)}")
    given = []
    for event, event_id in zip(objects, event_ids or repeat(None), strict=False):
        if isinstance(event, Event):
            if event_id is not None:
                raise TypeError("event_ids are for objects of registered classes; an Event has its own event_id")
            given.append(event)
            continue
        if registry is None:
            raise TypeError(
                f"events must contain Event only, not {type(event).__name__}. To append objects of your own classes, "
                "register them, and pass registry= to the store"
            )
        encoded = registry.encode(event)
        if aggregate is None:
            raise TypeError('aggregate is missing: write aggregate=("Order", "o1") to append objects of your classes')
        if needs_ids and event_id is None:
            raise ValueError("idempotent=True needs event_ids for objects: new ids would make them other events")
        given.append(
            Event(
                aggregate_type=aggregate[0],
                aggregate_id=aggregate[1],
                event_type=encoded.event_type,
                event_version=encoded.event_version,
                payload=encoded.payload,
                event_id=event_id,
            )
        )
    return tuple(given)


def check_ids(events: Sequence[Event]) -> None:
    """Refuse events with equal ids."""
    if len(events) > 1 and len({event.event_id for event in events}) < len(events):
        times = Counter(event.event_id for event in events)
        raise DuplicateEventError(event_id for event_id, count in times.items() if count > 1)


@dataclass(slots=True)
class Aggregate:
    """An aggregate of an append to several.

    Attributes:
        number: its number in the append, from 1.
        first: its first entry, whose expected version counts.
        size: number of events in all its entries.
    """

    number: int
    first: Append
    size: int = 0


def aggregates_of(appends: Iterable[Append]) -> dict[tuple[str, str], Aggregate]:
    """Return the aggregates by type and id."""
    aggregates: dict[tuple[str, str], Aggregate] = {}
    for append in appends:
        aggregate = aggregates.get(append.aggregate)
        if aggregate is None:
            aggregate = aggregates[append.aggregate] = Aggregate(len(aggregates) + 1, append)
        aggregate.size += len(append.events)
    return aggregates


def event_parameters(
    events: Sequence[Event], *, has_json_payload: bool, starts: Iterable[str] = repeat("{")
) -> dict[str, Any]:
    """Return the events as parameters of the statements: a JSON array, and the payloads as one value of bytes.

    Args:
        events: the events in the order of their positions.
        has_json_payload: the log has a JSONB column for payloads. They are then part of the array.
        starts: start of the JSON object of each event.
    """
    numbered = zip(count(1), starts, events)
    if has_json_payload:
        rows = [
            f'{start}"number":{number},"payload":{_json_text(event)},{event.append_json}'
            for number, start, event in numbered
        ]
        return {"events": f"[{','.join(rows)}]"}
    rows, offset = [], 1
    for number, start, event in numbered:
        size = len(event.payload)
        rows.append(f'{start}"number":{number},"start":{offset},"size":{size},{event.append_json}')
        offset += size
    return {"events": f"[{','.join(rows)}]", "payloads": b"".join([event.payload for event in events])}


def starts_of(events: Iterable[Event], aggregates: Mapping[tuple[str, str], Aggregate]) -> Iterator[str]:
    """Yield the start of each event's JSON object: its aggregate, and its place among the events of this aggregate."""
    places = dict.fromkeys(aggregates, 0)
    for event in events:
        name = event.aggregate_type, event.aggregate_id
        place = places[name] = places[name] + 1
        yield f'{{"stream":{aggregates[name].number},"place":{place},'


def aggregate_parameter(aggregates: Iterable[Aggregate]) -> str:
    """Return the aggregates as a parameter of the statements, a JSON array."""
    rows = []
    for aggregate in aggregates:
        first = aggregate.first
        row = {"stream": aggregate.number, "stream_type": first.aggregate_type, "stream_id": first.aggregate_id}
        rows.append(row | {"expected": first.expected.version, "count": aggregate.size})
    return json.dumps(rows, ensure_ascii=False)


def _json_text(event: Event) -> str:
    """Return the payload as text for a JSONB column, which refuses NaN, infinity and NUL characters."""
    try:
        text = event.payload.decode()
        json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise ValueError(f"payload of event {event.event_id} must be JSON for a JSONB column: {error}") from None
    if has_nul(text):
        raise ValueError(f"payload of event {event.event_id} has a NUL character, which JSONB cannot store; remove it")
    return for_jsonb(text)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
